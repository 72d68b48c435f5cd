"""What it costs to record how requests ended: Celery's task on a real Postgres, per 1,000 requests.

    python -m bench.completions [--requests 6000] [--batch 120] [--rounds 3]

Prints, for each round, the processor time of the task (Python) and of Postgres, both per 1,000 requests, and how many
requests a second one core of each could record. A batch of 120 is what a gateway sends five times a second at 600
requests/s. Batches come through `record_completions` as they come from the broker: base64 of msgpack.
"""

from __future__ import annotations

import argparse
import base64
import os
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from controlplane.embedded.services import EmbeddedServices
from scheduler_worker.protocol.messages import (
    CompletionRecord,
    Header,
    Payload,
    SamplingParams,
    Timings,
    encode,
)

NUM_PROMPT_TOKENS = 250
PROMPT = [{"role": "user", "content": "Why does a queue grow faster than its load? " * 24}]
OUTPUT = "Because the time that a request waits grows with how busy the server is. " * 8


@contextmanager
def database() -> Iterator[int]:
    """A fresh Postgres with the schema, for Django of this process; yields the server's process id."""
    with tempfile.TemporaryDirectory(prefix="tidegate-bench-") as folder:
        Path(folder).chmod(0o755)  # as root the servers run as `nobody`
        with EmbeddedServices(Path(folder)) as services:
            os.environ |= {
                "TIDEGATE_DATABASE_URL": services.database_url,
                "TIDEGATE_REDIS_URL": services.redis_url,
                "TIDEGATE_SECRET_KEY": "bench" * 12,
                "DJANGO_SETTINGS_MODULE": "controlplane.settings",
            }
            import django
            from django.core.management import call_command

            django.setup()
            call_command("migrate", verbosity=0)
            yield services.pids["postgres"]


def accept(num: int) -> list[str]:
    """So many accepted requests of three tenants; their ids."""
    from controlplane.inference.services import AcceptedRequest, record_accepted
    from controlplane.tenants.models import ApiKey, Tenant
    from controlplane.tenants.services import create_key, create_tenant

    if not Tenant.objects.exists():
        for slug in ("acme", "globex", "initech"):
            tenant = create_tenant(slug=slug, name=slug, actor="bench")
            create_key(tenant=tenant, name="bench", actor="bench", default_class="low")
    api_keys = list(ApiKey.objects.values_list("tenant_id", "id"))
    ids = [str(uuid.uuid4()) for _ in range(num)]
    rows = []
    for number, request_id in enumerate(ids):
        tenant_id, key_id = api_keys[number % len(api_keys)]
        header = Header(
            request_id=request_id,
            class_id="low",
            tenant=str(tenant_id),
            gateway="bench",
            arrived_at=time.time(),
            num_prompt_tokens=NUM_PROMPT_TOKENS,
            max_tokens=200,
        )
        token_ids = b"\1\0\0\0" * NUM_PROMPT_TOKENS
        payload = Payload(request_id=request_id, token_ids=token_ids, sampling=SamplingParams(max_tokens=200))
        rows.append(
            AcceptedRequest(
                header=header,
                payload=payload,
                tenant_id=tenant_id,
                key_id=key_id,
                endpoint="chat.completions",
                model="bench",
                prompt=PROMPT,
            )
        )
    for start in range(0, num, 500):
        record_accepted(rows[start : start + 500])
    return ids


def batches(ids: list[str], size: int) -> list[list[str]]:
    """The ends of these requests, as a gateway sends them."""
    now = time.time()
    texts = [base64.b64encode(encode(_completion(one, now))).decode() for one in ids]
    return [texts[start : start + size] for start in range(0, len(texts), size)]


def _completion(request_id: str, now: float) -> CompletionRecord:
    return CompletionRecord(
        request_id=request_id,
        state="succeeded",
        finish_reason="stop",
        finished_at=now,
        num_prompt_tokens=NUM_PROMPT_TOKENS,
        num_output_tokens=120,
        ttft_s=0.31,
        tpot_s=0.021,
        e2e_s=2.9,
        first_token_at=now - 2.5,
        post_s=0.001,
        worker="worker-1",
        text=OUTPUT,
        timings=Timings(queue_s=0.1, prefill_s=0.2, decode_s=2.4),
    )


def server_cpu_s(pid: int) -> float:
    """Processor time of Postgres with all its processes, ended ones included."""
    server = psutil.Process(pid)
    times = [server.cpu_times(), *(child.cpu_times() for child in server.children(recursive=True))]
    return sum(one.user + one.system for one in times) + times[0].children_user + times[0].children_system


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=6000)
    parser.add_argument("--batch", type=int, default=120)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with database() as pid:
        from controlplane.inference.tasks import record_completions

        for number in range(options.rounds):
            due = batches(accept(options.requests), options.batch)
            server, own, began = server_cpu_s(pid), time.process_time(), time.perf_counter()
            num_changed = sum(record_completions(batch) for batch in due)
            own, took = time.process_time() - own, time.perf_counter() - began
            server = server_cpu_s(pid) - server
            per_1000 = 1000 / num_changed
            print(
                f"round {number + 1}: {num_changed} recorded; per 1,000: task {own * per_1000 * 1000:.0f} ms, "
                f"Postgres {server * per_1000 * 1000:.0f} ms of processor time; {num_changed / took:.0f}/s in all, "
                f"{num_changed / own:.0f}/s a core of the task"
            )


if __name__ == "__main__":
    main()
