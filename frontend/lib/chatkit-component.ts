/** Loading and watching `<openai-chatkit>`, which is only available from OpenAI's CDN. Independent of React and Next.js. */

export const COMPONENT_URL = 'https://cdn.platform.openai.com/deployments/chatkit/chatkit.js'
export const COMPONENT_TIMEOUT_MS = 20_000
export const ALLOWLIST_URL = 'https://platform.openai.com/settings/organization/security/domain-allowlist'

/** A failure of the component, as opposed to the session. `message` is for developers, `userMessage` for the user. */
export class ComponentError extends Error {
  readonly userMessage: string

  constructor(
    readonly code: 'script_not_loaded' | 'not_drawn' | 'not_ready' | 'removed',
    message: string,
  ) {
    super(message)
    this.name = 'ComponentError'
    this.userMessage =
      code === 'removed'
        ? 'The chat has closed. It may not be allowed on this website. Please try again.'
        : 'The chat could not be loaded. Please try again.'
  }
}

let loading: Promise<void> | null = null

/**
 * Load the component's script, once per page. Resolves when `<openai-chatkit>` is defined.
 *
 * Rejects with a `ComponentError` if the script fails to load. The next call tries again.
 */
export function loadChatKit(): Promise<void> {
  if (!loading) {
    loading = load()
    loading.catch(() => (loading = null))
  }
  return loading
}

function load(): Promise<void> {
  return new Promise((resolve, reject) => {
    const existing = document.querySelector<HTMLScriptElement>(`script[src="${COMPONENT_URL}"]`)
    const script = existing || document.createElement('script')
    const fail = (reason: string) => {
      clearTimeout(timer)
      script.remove() // a failed script element never loads again
      reject(new ComponentError('script_not_loaded', `${COMPONENT_URL} ${reason}`))
    }
    const timer = setTimeout(() => fail('timed out'), COMPONENT_TIMEOUT_MS)
    script.addEventListener('error', () => fail('could not be loaded'))
    void customElements.whenDefined('openai-chatkit').then(() => {
      clearTimeout(timer)
      resolve()
    })
    if (existing) return
    script.src = COMPONENT_URL
    document.head.append(script)
  })
}

/** Call `fail` when the component has not become ready in time. Returns a function that cancels the timeout. */
export function startReadyTimeout(fail: (error: ComponentError) => void): () => void {
  const timer = setTimeout(() => fail(allowlistError('not_ready', 'has not become ready')), COMPONENT_TIMEOUT_MS)
  return () => clearTimeout(timer)
}

/**
 * Call `fail` when the component is removed from its parent. It removes itself on a host that is not in OpenAI's domain
 * allowlist, sometimes a while after it was ready. Returns a function that stops watching.
 */
export function watchRemoval(element: HTMLElement, fail: (error: ComponentError) => void): () => void {
  const observer = new MutationObserver(() => {
    if (!element.isConnected) fail(allowlistError('removed', 'has removed itself from the page'))
  })
  if (element.parentNode) observer.observe(element.parentNode, { childList: true })
  return () => observer.disconnect()
}

function allowlistError(code: ComponentError['code'], what: string): ComponentError {
  return new ComponentError(
    code,
    `ChatKit ${what}. ${location.host} may be missing in OpenAI's domain allowlist, ${ALLOWLIST_URL}`,
  )
}
