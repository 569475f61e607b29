/** Web Locks as signs of life: a page holds one for as long as it exists, however it ends. */

/** Whether pages of this browser can share: everything of 2022 and later, on secure origins. */
export function canShare(): boolean {
  return globalThis.navigator?.locks !== undefined && typeof BroadcastChannel === "function";
}

/** Hold a lock until the returned function is called or the page ends; resolves when it is held. */
export function hold(name: string): Promise<() => void> {
  return new Promise((resolve, reject) => {
    navigator.locks
      .request(name, () => new Promise<void>((release) => resolve(release)))
      .catch(reject);
  });
}

/** Call `gone` once nobody holds the lock. */
export function whenReleased(name: string, gone: () => void): void {
  navigator.locks.request(name, gone).catch(gone);
}
