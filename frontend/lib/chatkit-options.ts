/** The contract's configuration in ChatKit's own terms. Needs neither React nor Next.js. */

import type { ChatKitOptions, CustomApiConfig, ThemeOption } from '@openai/chatkit'
import { API_URL, type ChatKitConfig } from './chatkit-config'
import type { Session } from './page-session'

/** Set: the chat is the service's own. Not set: it is a hosted workflow's. ChatKit takes no domain key with the latter. */
export const DOMAIN_KEY = process.env.NEXT_PUBLIC_CHATKIT_DOMAIN_KEY || null

/** Where ChatKit sends what the user says, and how it gets its secrets. `onMessage` is called with what has been sent. */
export function chatKitApi(
  session: Session,
  domainKey: string | null,
  onMessage?: (message: string) => void,
): ChatKitOptions['api'] {
  if (!domainKey) return { getClientSecret: (existing) => session.secret(existing) }
  return { url: `${API_URL}/api/chatkit`, domainKey, fetch: chatFetch(session, onMessage) }
}

export function chatKitTheme(theme: ChatKitConfig['theme']): ThemeOption {
  const primary = theme?.primaryColor
  return { colorScheme: theme?.darkMode ? 'dark' : 'light', ...(primary && { color: { accent: { primary, level: 2 } } }) }
}

/** `fetch` with the page's secret. A call whose secret turns out to be gone is repeated, once, with a new one. */
function chatFetch(session: Session, onMessage?: (message: string) => void): NonNullable<CustomApiConfig['fetch']> {
  return async (input, init) => {
    const send = (secret: string) => {
      const headers = new Headers(init?.headers || (input instanceof Request ? input.headers : undefined))
      headers.set('Authorization', `Bearer ${secret}`)
      return fetch(input instanceof Request ? input.clone() : input, { ...init, headers })
    }
    const secret = await session.secret()
    let response = await send(secret)
    if (await isGone(response)) {
      session.drop(secret)
      response = await send(await session.secret())
    }
    if (onMessage && response.ok) {
      const message = messageIn(typeof init?.body === 'string' ? init.body : input instanceof Request ? await input.text() : '')
      if (message) onMessage(message)
    }
    return response
  }
}

/** Whether the service says that a secret has run out, or that it has none such. */
async function isGone(response: Response): Promise<boolean> {
  if (response.status !== 401) return false
  const { code } = await response.clone().json().catch(() => ({}))
  return code === 'client_secret_expired' || code === 'client_secret_unknown'
}

/** The text that a request of ChatKit's protocol brings from its user; nothing for any other request. */
function messageIn(body: string): string {
  try {
    const { type, params } = JSON.parse(body)
    return type === 'threads.create' || type === 'threads.add_user_message' ? messageText(params.input.content) : ''
  } catch {
    return ''
  }
}

/** What the parts of a message say, as one text. */
export function messageText(content: readonly { text: string }[]): string {
  return content.map((part) => part.text).join('')
}
