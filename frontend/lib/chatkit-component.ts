/** `<openai-chatkit>`, which comes from OpenAI's CDN and from nowhere else. Needs neither React nor Next.js. */

export const COMPONENT_URL = 'https://cdn.platform.openai.com/deployments/chatkit/chatkit.js'
export const COMPONENT_LIMIT_MS = 20_000
export const ALLOWLIST_URL = 'https://platform.openai.com/settings/organization/security/domain-allowlist'

/** Why there is no chat although there may be a session. `message` is for developers, `userMessage` for everybody else. */
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
 * Load the component's script, once a page; resolves when `<openai-chatkit>` can be used.
 *
 * Throws a `ComponentError` when the script can't be had. The next call tries again.
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
    const own = document.querySelector<HTMLScriptElement>(`script[src="${COMPONENT_URL}"]`)
    const script = own || document.createElement('script')
    const fail = (what: string) => {
      clearTimeout(timer)
      script.remove() // a script that has failed once never tries again
      reject(new ComponentError('script_not_loaded', `${COMPONENT_URL} ${what}`))
    }
    const timer = setTimeout(() => fail('takes too long'), COMPONENT_LIMIT_MS)
    script.addEventListener('error', () => fail('could not be loaded'))
    void customElements.whenDefined('openai-chatkit').then(() => {
      clearTimeout(timer)
      resolve()
    })
    if (own) return
    script.src = COMPONENT_URL
    document.head.append(script)
  })
}

/** Call `fail` unless the component is ready within the time it is given. Returns what calls that off. */
export function limitLoading(fail: (error: ComponentError) => void): () => void {
  const timer = setTimeout(() => fail(blank('not_ready', 'has not become ready')), COMPONENT_LIMIT_MS)
  return () => clearTimeout(timer)
}

/**
 * Call `fail` when the component is taken out of the page, unless with one of its ancestors. It does that to itself on a host
 * that OpenAI's domain allowlist does not have, at times a while after it was ready. Returns what ends the watching.
 */
export function watchRemoval(element: HTMLElement, fail: (error: ComponentError) => void): () => void {
  const observer = new MutationObserver(() => {
    if (!element.isConnected) fail(blank('removed', 'has removed itself from the page'))
  })
  if (element.parentNode) observer.observe(element.parentNode, { childList: true })
  return () => observer.disconnect()
}

function blank(code: ComponentError['code'], what: string): ComponentError {
  return new ComponentError(
    code,
    `ChatKit ${what}. ${location.host} may be missing in OpenAI's domain allowlist, ${ALLOWLIST_URL}`,
  )
}
