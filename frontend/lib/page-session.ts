/** The session shared by all chats of a page. Independent of React and Next.js. */

import type { ChatKitConfig } from './chatkit-config'

export type GetClientSecret = ChatKitConfig['api']['getClientSecret']

/** The interface of a `PageSession` for one chat, which may wrap it. */
export type Session = Pick<PageSession, 'secret' | 'invalidate'>

export class PageSession {
  private static readonly all = new WeakMap<GetClientSecret, PageSession>()
  private current: string | null = null

  private constructor(private readonly getClientSecret: GetClientSecret) {}

  /** The session for this `getClientSecret`, always the same one, so that several chats on a page need one call. */
  static of(getClientSecret: GetClientSecret): PageSession {
    const session = PageSession.all.get(getClientSecret) || new PageSession(getClientSecret)
    PageSession.all.set(getClientSecret, session)
    return session
  }

  /** Return a valid secret. `existing` is the one that the caller used last. Throws the errors of `getClientSecret`. */
  async secret(existing?: string | null): Promise<string> {
    this.current = await this.getClientSecret(existing || this.current || undefined)
    return this.current
  }

  /** Discard a secret that was rejected. A newer one that has replaced it meanwhile is kept. */
  invalidate(secret: string | null = this.current): void {
    if (this.current === secret) this.current = null
  }
}

/** Make a call with the page's secret. If the service rejects that, repeat the call once with a new one. */
export async function withSecret(session: Session, send: (secret: string) => Promise<Response>): Promise<Response> {
  const secret = await session.secret()
  const response = await send(secret)
  if (!(await isSecretRejected(response))) return response
  session.invalidate(secret)
  return send(await session.secret())
}

/** Whether the service rejected the secret as expired or unknown. */
async function isSecretRejected(response: Response): Promise<boolean> {
  if (response.status !== 401) return false
  const { code } = await response
    .clone()
    .json()
    .catch(() => ({}))
  return code === 'client_secret_expired' || code === 'client_secret_unknown'
}
