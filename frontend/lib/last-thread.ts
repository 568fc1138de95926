/** The last conversation of this browser, to continue after a reload. Independent of React and Next.js. */

import { ServiceError } from './errors'

const KEY = 'chatkit.thread'

export function lastThread(): string | null {
  try {
    return localStorage.getItem(KEY)
  } catch {
    return null // no storage: on the server, or blocked by the user
  }
}

export function forgetThread(): void {
  storeThread(null)
}

function storeThread(id: string | null): void {
  try {
    if (id) localStorage.setItem(KEY, id)
    else localStorage.removeItem(KEY)
  } catch {
    // No storage: a reload starts a new conversation.
  }
}

/** ChatKit event handlers that keep the last conversation up to date. */
export function trackLastThread() {
  let isLoading = false
  return {
    onThreadChange: ({ threadId }: { threadId: string | null }) => storeThread(threadId),
    onThreadLoadStart: () => void (isLoading = true),
    onThreadLoadEnd: () => void (isLoading = false),
    /**
     * Return whether `error` means that a conversation was not found or failed to load. One that was not found, because it was
     * deleted or belongs to another user, is forgotten: it would fail again. After any other error a retry may load it.
     */
    onError(error: Error): 'not_found' | 'not_loaded' | null {
      const threadId = error instanceof ServiceError ? error.threadId : undefined
      if (!isLoading && !threadId) return null
      isLoading = false
      if (!isNotFound(error)) return 'not_loaded'
      if (!threadId || threadId === lastThread()) forgetThread()
      return 'not_found'
    },
  }
}

/** For a hosted chat there is only ChatKit's message. */
function isNotFound(error: Error): boolean {
  return error instanceof ServiceError
    ? error.status === 404 && error.code === 'not_found'
    : /\b404\b|not found/i.test(error.message)
}
