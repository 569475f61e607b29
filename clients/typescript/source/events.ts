/** Listeners of typed events. */
export class Emitter<Events extends object> {
  readonly #listeners = new Map<keyof Events, Set<(event: never) => void>>();

  /** Call `listener` for each event until the returned function is called, or `signal` aborts. */
  on<Name extends keyof Events>(
    name: Name,
    listener: (event: Events[Name]) => void,
    { signal }: { signal?: AbortSignal | undefined } = {},
  ): () => void {
    const listeners = this.#listeners.get(name) ?? new Set();
    this.#listeners.set(name, listeners);
    // Of its own, so that the same function added twice is two listeners.
    const own = (event: Events[Name]): void => listener(event);
    const off = (): void => {
      listeners.delete(own);
      signal?.removeEventListener("abort", off);
    };
    if (!signal?.aborted) {
      listeners.add(own);
      signal?.addEventListener("abort", off);
    }
    return off;
  }

  /** Call all listeners. One that throws does not stop the others; it is told on the console. */
  emit<Name extends keyof Events>(name: Name, event: Events[Name]): void {
    for (const listener of [...(this.#listeners.get(name) ?? [])]) {
      try {
        (listener as (event: Events[Name]) => void)(event);
      } catch (error) {
        console.error("message bus: a listener threw", error);
      }
    }
  }
}
