/**
 * The script of the host page: brings up a chat step by step and says what works, what doesn't, and what to do about it.
 * `npm run build:host-page` makes `static/host.js` of it, for the contract's browsers.
 */

import type { OpenAIChatKit } from '@openai/chatkit'
import { limitLoading, loadChatKit, watchRemoval } from '../lib/chatkit-component'
import { chatKitConfig, describeSession, getClientSecret, letRunOut } from '../lib/chatkit-config'
import { chatKitApi, chatKitTheme } from '../lib/chatkit-options'
import { lastThread, threadKeeper } from '../lib/last-thread'
import { PageSession, type Session } from '../lib/page-session'
import { setService } from '../lib/service'
import { adviceFor } from './advice'

type Step = 'settings' | 'session' | 'script' | 'ready'

setService({ apiUrl: location.origin, domainKey: document.body.dataset.domainKey }) // a hosted chat has no key

const pageSession = PageSession.of(getClientSecret)
let shownSecret: string | null = null
let chat: OpenAIChatKit | null = null
let stopWatching = () => {}
let beginnings = 0

const session: Session = {
  async secret(existing) {
    try {
      shownSecret = await pageSession.secret(existing)
      if (hasFailed('session')) byId('error').hidden = true
      showSession()
      return shownSecret
    } catch (reason) {
      show('session', 'failed', 'none')
      report(reason as Error)
      throw reason
    }
  },
  drop: (secret) => pageSession.drop(secret),
}

function byId(id: string): HTMLElement {
  return document.getElementById(id)!
}

function show(step: Step, state: 'waiting' | 'ok' | 'failed', text: string): void {
  byId(step).dataset.state = state
  byId(step).querySelector('.state')!.textContent = text
}

function hasFailed(step: Step): boolean {
  return byId(step).dataset.state === 'failed'
}

function showSession(): void {
  const described = shownSecret && describeSession(shownSecret)
  if (!described) return
  const seconds = Math.round(described.secondsLeft)
  show('session', 'ok', `${described.sessionId}, ${seconds ? `${seconds} s left` : 'run out: the next message gets a new one'}`)
}

function report(error: Error): void {
  byId('error-message').textContent = error.message
  byId('error-advice').textContent = adviceFor(error)
  byId('error').hidden = false
}

async function checkSettings(): Promise<void> {
  show('settings', 'waiting', '…')
  try {
    const { message } = await (await fetch('/readyz')).json()
    show('settings', message ? 'failed' : 'ok', message || 'complete')
  } catch {
    show('settings', 'failed', 'the service does not answer')
  }
}

/** Everything from the beginning: a new session, in a new component. */
async function begin(): Promise<void> {
  const mine = ++beginnings
  stopWatching()
  chat?.remove()
  byId('error').hidden = true
  pageSession.drop()
  shownSecret = null
  show('session', 'waiting', '…')
  show('script', 'waiting', '…')
  show('ready', 'waiting', '…')
  void checkSettings()
  session.secret().catch(() => {}) // reported already
  try {
    await loadChatKit()
  } catch (reason) {
    show('script', 'failed', 'not loaded')
    return report(reason as Error)
  }
  if (mine !== beginnings) return
  show('script', 'ok', 'loaded from OpenAI’s CDN')
  embed()
}

function embed(): void {
  const element = document.createElement('openai-chatkit') as OpenAIChatKit
  const fail = (error: Error) => {
    show('ready', 'failed', 'not there')
    report(error)
  }
  const thread = threadKeeper()
  const stopLimit = limitLoading(fail)
  element.addEventListener('chatkit.ready', () => {
    stopLimit()
    show('ready', 'ok', 'ready, say something')
  })
  element.addEventListener('chatkit.error', ({ detail }) => {
    thread.onError(detail.error)
    if (!hasFailed('session')) report(detail.error) // else it is ChatKit's words for what is reported already
  })
  element.addEventListener('chatkit.response.start', () => (byId('error').hidden = true))
  element.addEventListener('chatkit.thread.change', ({ detail }) => thread.onThreadChange(detail))
  element.addEventListener('chatkit.thread.load.start', thread.onThreadLoadStart)
  element.addEventListener('chatkit.thread.load.end', thread.onThreadLoadEnd)
  byId('chat').replaceChildren(element)
  const stopRemoval = watchRemoval(element, fail)
  stopWatching = () => {
    stopLimit()
    stopRemoval()
  }
  chat = element
  configure()
}

function configure(): void {
  chat?.setOptions({
    api: chatKitApi(session),
    theme: chatKitTheme({ ...chatKitConfig.theme, darkMode: document.documentElement.dataset.theme === 'dark' }),
    initialThread: lastThread(),
    startScreen: {
      greeting: 'What can I help with today?',
      prompts: [
        { label: 'Say hello', prompt: 'Hello!' },
        { label: 'What can you do?', prompt: 'What can you do?' },
      ],
    },
  })
}

function setDark(dark: boolean): void {
  document.documentElement.dataset.theme = dark ? 'dark' : 'light'
  byId('dark').setAttribute('aria-pressed', String(dark))
  configure()
}

byId('new').addEventListener('click', () => void begin())
byId('run-out').addEventListener('click', () => {
  if (shownSecret) letRunOut(shownSecret)
  showSession()
})
byId('dark').addEventListener('click', () => setDark(document.documentElement.dataset.theme !== 'dark'))
setInterval(showSession, 1000)
setDark(matchMedia('(prefers-color-scheme: dark)').matches)
void begin()
