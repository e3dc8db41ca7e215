/** What the GPU worker runs behind the mailbox: units by number, whatever computes them. */
export interface UnitServer {
  /** The device as its driver names it; null: not known. */
  readonly device: string | null;
  /** Bytes of weights it holds. */
  readonly bytes: number;
  /**
   * Computes a unit: rows of x in the mailbox, packed to the unit's width, to rows of y.
   * @throws Error when there is no y: the worker then serves nothing any more
   */
  run(unit: number, rows: number): Promise<void>;
  close(): Promise<void>;
}

/** What a server needs to begin. */
export interface ServerStart {
  x: Float32Array;
  y: Float32Array;
  /** Called after every unit that is there. @returns false: end early, nobody wants them any more */
  onUnit: (bytes: number, ms: number) => boolean;
}
