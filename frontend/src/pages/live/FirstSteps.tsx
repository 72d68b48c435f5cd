import type { LiveSnapshot } from '../../api/live';
import { Link } from '../../components/Link';
import { useLive } from '../../live/context';
import { plural } from '../../lib/format';

/** Before the first request: what is ready, and how to send one. */
export function FirstSteps({ snapshot }: { snapshot: LiveSnapshot }) {
  const model = useLive().hello?.model ?? 'MODEL';
  const live = snapshot.workers.filter((worker) => worker.state === 'live').length;
  const version = snapshot.policy_version === null ? 'no policy' : `policy v${snapshot.policy_version}`;
  return (
    <section className="panel emptybox" aria-labelledby="first">
      <div>
        <h2 id="first">No request has arrived yet</h2>
        <p className="k">
          {live === 0
            ? 'No worker is connected yet; requests are refused with 503 until one is.'
            : `${plural(live, 'worker is', 'workers are')} ready with ${version}. This page fills itself as soon as the first request comes.`}
        </p>
      </div>
      <ol>
        <li>
          <b>1</b>
          <div>
            Send one with an API key:
            <pre tabIndex={0} aria-label="Command">
              {`curl ${window.location.origin}/v1/chat/completions \\
  -H "Authorization: Bearer $TIDEGATE_KEY" -H "Content-Type: application/json" \\
  -d '{"model":"${model}","stream":true,"messages":[{"role":"user","content":"Hello"}]}'`}
            </pre>
          </div>
        </li>
        <li>
          <b>2</b>
          <div>
            Or open the <Link to="/playground">Playground</Link> and type.
          </div>
        </li>
        <li>
          <b>3</b>
          <div>
            In the demo the load generator does it: start it without <span className="id">--no-load</span>.
          </div>
        </li>
      </ol>
    </section>
  );
}
