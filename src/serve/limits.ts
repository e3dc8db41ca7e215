/** What a server allows; every one is in the message of the refusal. */
export interface ServeLimits {
  bodyBytes: number;
  /** Sequences that wait for a slot. */
  queue: number;
  /** The longest wait for a slot. */
  queueMs: number;
  /** The longest a request may take altogether. */
  requestMs: number;
  connections: number;
  /** Choices of one request, over all of its prompts. */
  choices: number;
  /** A request arrives within this; a sender that is slower holds a connection and nothing else. */
  arrivalMs: number;
  /** A client that takes nothing for so long counts as gone. */
  stallMs: number;
  /** The longest that running requests may take after SIGTERM. */
  drainMs: number;
}

export const DEFAULT_LIMITS: ServeLimits = {
  bodyBytes: 1 << 20,
  queue: 64,
  queueMs: 30_000,
  requestMs: 600_000,
  connections: 256,
  choices: 16,
  arrivalMs: 60_000,
  stallMs: 10_000,
  drainMs: 600_000,
};

/** Of fields; those that depend on the model are checked against it. */
export const MAX_STOPS = 16;
export const MAX_STOP_LENGTH = 256;
export const MAX_BIASES = 1024;
export const MAX_TOP_LOGPROBS = 20;
export const MAX_MESSAGES = 4096;
export const MAX_TOOLS = 128;
export const MAX_PROMPTS = 16;
export const MAX_SEED = 2 ** 32 - 1;
