/** The conversation that this browser was in, so that a reload goes on with it. Needs neither React nor Next.js. */

import { ServiceError } from './errors'

const KEY = 'chatkit.thread'

export function lastThread(): string | null {
  try {
    return localStorage.getItem(KEY)
  } catch {
    return null // no storage: on the server, or where the user has blocked it
  }
}

export function forgetThread(): void {
  remember(null)
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
    /**
     * Returns what `error` says about the conversation that was to be loaded. One that is gone, deleted or another user's, is
     * forgotten: it would fail each time. After any other error it may load at the next try.
     */
    onError(error: Error): 'gone' | 'not_loaded' | null {
      const threadId = error instanceof ServiceError ? error.threadId : undefined
      if (!isLoading && !threadId) return null
      isLoading = false
      if (!isNotFound(error)) return 'not_loaded'
      if (!threadId || threadId === lastThread()) forgetThread()
      return 'gone'
    },
  }
}

/** Of a hosted chat there are only ChatKit's words. */
function isNotFound(error: Error): boolean {
  return error instanceof ServiceError
    ? error.status === 404 && error.code === 'not_found'
    : /\b404\b|not found/i.test(error.message)
}
