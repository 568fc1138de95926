/** The conversation that this browser was in, so that a reload goes on with it. */

const KEY = 'chatkit.thread'

export function lastThread(): string | null {
  try {
    return localStorage.getItem(KEY)
  } catch {
    return null // no storage: on the server, or where the user has blocked it
  }
}

export function rememberThread(id: string | null): void {
  try {
    if (id) localStorage.setItem(KEY, id)
    else localStorage.removeItem(KEY)
  } catch {
    // As above: then a reload begins a new conversation.
  }
}
