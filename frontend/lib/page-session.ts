/** The session that everything on a page shares. Needs neither React nor Next.js. */

import type { ChatKitConfig } from './chatkit-config'

export type GetClientSecret = ChatKitConfig['api']['getClientSecret']

/** What a chat needs of a `PageSession`; somebody may listen in between. */
export type Session = Pick<PageSession, 'secret' | 'drop'>

export class PageSession {
  private static readonly all = new WeakMap<GetClientSecret, PageSession>()
  private held: string | null = null

  private constructor(private readonly getClientSecret: GetClientSecret) {}

  /** The one session of all that get their secrets from this function, so that five chats on a page need one call. */
  static of(getClientSecret: GetClientSecret): PageSession {
    const session = PageSession.all.get(getClientSecret) || new PageSession(getClientSecret)
    PageSession.all.set(getClientSecret, session)
    return session
  }

  /** A secret that is alive. `existing` is what the caller has used so far. Throws what `getClientSecret` throws. */
  async secret(existing?: string | null): Promise<string> {
    this.held = await this.getClientSecret(existing || this.held || undefined)
    return this.held
  }

  /** The secret in use no longer works, whatever the clock says. Another one that has taken its place meanwhile is kept. */
  drop(secret: string | null = this.held): void {
    if (this.held === secret) this.held = null
  }
}
