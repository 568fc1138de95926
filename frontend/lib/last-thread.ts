/** The conversation that this browser was in, so that a reload goes on with it. Needs neither React nor Next.js. */

const KEY = 'chatkit.thread'

export function lastThread(): string | null {
  try {
    return localStorage.getItem(KEY)
  } catch {
    return null // no storage: on the server, or where the user has blocked it
  }
}

function remember(id: string | null): void {
  try {
    if (id) localStorage.setItem(KEY, id)
    else localStorage.removeItem(KEY)
  } catch {
    // As above: then a reload begins a new conversation.
  }
}

/** What keeps the last conversation up to date, when it is told what ChatKit tells. */
export function threadKeeper() {
  let isLoading = false
  return {
    onThreadChange: ({ threadId }: { threadId: string | null }) => remember(threadId),
    onThreadLoadStart: () => void (isLoading = true),
    onThreadLoadEnd: () => void (isLoading = false),
    onError() {
      if (isLoading) remember(null) // deleted, or another visitor's: without this no retry would help
    },
  }
}
