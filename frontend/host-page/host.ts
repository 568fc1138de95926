/**
 * The script of the host page: brings up a chat step by step and says what works, what doesn't, and what to do about it.
 * `npm run build:host-page` makes `static/host.js` of it, for the contract's browsers.
 */

import type { OpenAIChatKit } from '@openai/chatkit'
import { limitLoading, loadChatKit, watchRemoval } from '../lib/chatkit-component'
import { chatKitConfig, describeSession, getClientSecret, letRunOut } from '../lib/chatkit-config'
import { chatKitApi, chatKitTheme } from '../lib/chatkit-options'
import { ServiceError, userMessage } from '../lib/errors'
import { lastThread, threadKeeper } from '../lib/last-thread'
import { PageSession, type Session } from '../lib/page-session'
import { setService } from '../lib/service'
import { adviceFor, isOfTheNetwork, missingIn } from './advice'
import { type Facts, type Step, steps } from './steps'

const CHECK_MS = 10_000

setService({ apiUrl: location.origin, domainKey: document.body.dataset.domainKey }) // a hosted chat has no key

const pageSession = PageSession.of(getClientSecret)
const facts: Facts = { service: null, session: null, script: null, component: null }
let error: Error | null = null
let shownSecret: string | null = null
let failedCall: ServiceError | null = null
let chat: OpenAIChatKit | null = null
let stopWatching = () => {}
let beginnings = 0
let isChecking = false

const session: Session = {
  async secret(existing) {
    try {
      shownSecret = await pageSession.secret(existing)
      if (facts.session === 'failed') error = null
      readSession()
      return shownSecret
    } catch (reason) {
      facts.session = 'failed'
      shownSecret = null
      showError(reason as Error) // getClientSecret has it on the console
      throw reason
    }
  },
  drop: (secret) => pageSession.drop(secret),
}

function byId(id: string): HTMLElement {
  return document.getElementById(id)!
}

/** Show what is known. What has not changed is left alone: screen readers say each change. */
function show(): void {
  for (const [step, [state, text]] of Object.entries(steps(facts))) {
    const shown = byId(step as Step)
    if (shown.dataset.state !== state) shown.dataset.state = state
    setText(shown.querySelector('.state')!, text)
  }
  const notReady = facts.service !== null && typeof facts.service === 'object' ? facts.service.notReady : ''
  if (error) {
    // The service's own messages say more to a developer than the sentences for everybody do.
    setText(byId('error-message'), error instanceof ServiceError && error.code ? error.message : userMessage(error))
    setText(byId('error-advice'), adviceFor(error, missingIn(notReady)))
  }
  byId('error').hidden = !error
}

function setText(element: Element, text: string): void {
  if (element.textContent !== text) element.textContent = text
}

function readSession(): void {
  const described = shownSecret && describeSession(shownSecret)
  if (described) facts.session = { id: described.sessionId, secondsLeft: described.secondsLeft }
  show()
}

function report(reason: Error): void {
  console.error('ChatKit:', reason)
  showError(reason)
}

function showError(reason: Error): void {
  error = reason
  show()
  if (isOfTheNetwork(reason)) void checkService()
}

/** Ask the service how it is, so that the page does not go on saying what was true once. */
async function checkService(): Promise<void> {
  if (isChecking) return
  isChecking = true
  const wasUnreachable = facts.service === 'unreachable'
  const controller = new AbortController()
  const timer = setTimeout(() => controller.abort(), CHECK_MS)
  try {
    const response = await fetch('/readyz', { signal: controller.signal })
    const { message } = await response.json()
    facts.service = response.ok ? 'ready' : { notReady: message }
  } catch {
    facts.service = 'unreachable'
  }
  clearTimeout(timer)
  isChecking = false
  if (wasUnreachable && facts.service !== 'unreachable') {
    if (facts.session === 'failed') return begin()
    if (error && isOfTheNetwork(error)) error = null
  }
  show()
}

/** Everything from the beginning: a new session, in a new component. */
async function begin(): Promise<void> {
  const mine = ++beginnings
  stopWatching()
  chat?.remove()
  pageSession.drop()
  Object.assign(facts, { service: null, session: null, script: null, component: null })
  error = shownSecret = null
  show()
  void checkService()
  session.secret().catch(() => {}) // reported already
  try {
    await loadChatKit()
  } catch (reason) {
    if (mine !== beginnings) return
    facts.script = 'failed'
    return report(reason as Error)
  }
  if (mine !== beginnings) return
  facts.script = 'loaded'
  embed()
}

function embed(): void {
  const element = document.createElement('openai-chatkit') as OpenAIChatKit
  const fail = (reason: Error) => {
    facts.component = 'failed'
    report(reason)
  }
  const thread = threadKeeper()
  stopWatching()
  const stopLimit = limitLoading(fail)
  element.addEventListener('chatkit.ready', () => {
    stopLimit()
    facts.component = 'ready'
    show()
  })
  element.addEventListener('chatkit.error', ({ detail }) => {
    if (facts.session === 'failed') return // ChatKit's words for what is reported already
    const reason = failedCall ?? detail.error
    failedCall = null
    if (thread.onError(reason) === 'gone') return embed() // a new conversation
    report(reason)
  })
  element.addEventListener('chatkit.response.start', () => {
    error = null
    show()
  })
  element.addEventListener('chatkit.thread.change', ({ detail }) => thread.onThreadChange(detail))
  element.addEventListener('chatkit.thread.load.start', thread.onThreadLoadStart)
  element.addEventListener('chatkit.thread.load.end', thread.onThreadLoadEnd)
  byId('chat').replaceChildren(element)
  const stopRemoval = watchRemoval(element, fail)
  stopWatching = () => {
    stopLimit()
    stopRemoval()
  }
  facts.component = null
  chat = element
  show()
  configure()
}

function configure(): void {
  chat?.setOptions({
    api: chatKitApi(session, { onFailure: (failure) => (failedCall = failure) }),
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

const systemDark = matchMedia('(prefers-color-scheme: dark)')

byId('new').addEventListener('click', () => void begin())
byId('run-out').addEventListener('click', () => {
  if (shownSecret) letRunOut(shownSecret)
  readSession()
})
byId('dark').addEventListener('click', () => setDark(document.documentElement.dataset.theme !== 'dark'))
systemDark.addEventListener('change', ({ matches }) => setDark(matches))
setInterval(readSession, 1000)
setInterval(() => document.hidden || void checkService(), CHECK_MS)
setDark(systemDark.matches)
void begin()
