// One definition of each word of the trade, at hand everywhere.

export const TERMS = {
  ttft: [
    'TTFT: time to first token',
    'From the moment a request arrives until its first token leaves. Waiting in the queue and reading the prompt are both inside it. People feel it as “is it working?”',
  ],
  tpot: [
    'TPOT: time per output token',
    'Average gap between tokens after the first: (total time − TTFT) ÷ (tokens − 1). People feel it as reading speed; 40 ms is 25 tokens a second.',
  ],
  attainment: [
    'Attainment',
    'Share of requests that met both objectives of their class, TTFT and TPOT. The promise names the share that must. It counts the last five minutes; when objectives change, it starts over.',
  ],
  budget: [
    'Error budget',
    'How many requests may miss in 30 days before the promise is broken for the month. A 99 % promise leaves 1 % as budget. Burn 1× spends it in exactly 30 days. When objectives change, it starts over: what others judged does not count.',
  ],
  goodput: [
    'Goodput',
    'Requests per second that met all of their objectives. Throughput counts every request, also the late ones.',
  ],
  kv: [
    'KV cache',
    'Device memory that holds what the model has read of each running request. It is handed out in blocks; without free blocks nothing new can start, even if slots are free.',
  ],
  slot: ['Slot', 'One place in the running batch. The batch limit says how many slots a worker may fill.'],
  parked: [
    'Parked',
    'Preempted: taken off the device so that a more urgent request could keep its promise, or because memory ran out. It keeps its place by its first arrival and loses no token.',
  ],
  step: ['Step', 'One pass of the model over the running batch; every decoding request gets one token per step.'],
  joule: [
    'Joules per 1,000 tokens',
    'Energy of the device for 1,000 generated tokens, measured by the device, or estimated where it says “est.”.',
  ],
  bound: [
    'Wait bound',
    'Longest wait the policy allows. As a request nears it, it is served ahead of its turn, within the share of its class.',
  ],
  itl: [
    'ITL: inter-token latency',
    'Each single gap between two tokens of a request. The batch limit watches its p99.',
  ],
} as const satisfies Record<string, readonly [string, string]>;

export type TermName = keyof typeof TERMS;
