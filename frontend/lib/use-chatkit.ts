'use client'

/** The contract's `useChatKit(config)`, a thin wrapper over the hook of `@openai/chatkit-react`. */

import { type UseChatKitOptions, type UseChatKitReturn, useChatKit as useChatKitItself } from '@openai/chatkit-react'
import { useEffect, useEffectEvent, useLayoutEffect, useMemo, useRef, useState } from 'react'
import { ComponentError, limitLoading, loadChatKit, watchRemoval } from './chatkit-component'
import type { ChatKitConfig } from './chatkit-config'
import { type CallListeners, chatKitApi, chatKitTheme, messageText } from './chatkit-options'
import { type ServiceError, USER_MESSAGES, UserFacingError } from './errors'
import { PageSession, type Session } from './page-session'
import { service } from './service'

export interface Chat {
  /**
   * What the hook of `@openai/chatkit-react` returns. `<ChatKit control={chat.control} />` draws the chat: from the start, and
   * alone in an element of its own, because ChatKit may remove itself, and React can't cope with that beside others.
   */
  chat: UseChatKitReturn
  /** There is a session, and the component has loaded and is in the page. */
  isReady: boolean
  /** What went wrong last, until something works again. Its `message` is a sentence to show, its `cause` the error itself. */
  error: UserFacingError | null
}

/** How far the component is: being loaded, loaded, ready; not in the page, or gone from it by itself. */
type Stage = 'loading' | 'loaded' | 'ready' | 'undrawn' | 'removed'

/**
 * A chat as the contract configures it.
 *
 * `config.onMessage` is called with what the user has sent; of a hosted chat the page sees only what it sends itself, with
 * `chat.sendUserMessage`. `config.onError` is called with each error, once. `config.api.getClientSecret` is the one of the first
 * rendering: let it be a function of a module, not one made anew each time.
 *
 * `more` goes to ChatKit: start screen, composer, `initialThread`, `onThreadChange`, ….
 */
export function useChatKit(config: ChatKitConfig, more: Omit<UseChatKitOptions, 'api' | 'theme' | 'onError'> = {}): Chat {
  const [pageSession] = useState(() => PageSession.of(config.api.getClientSecret))
  const [hasSession, setHasSession] = useState(false)
  const [stage, setStage] = useState<Stage>('loading')
  const [error, setError] = useState<UserFacingError | null>(null)
  const sessionError = useRef<Error | null>(null)
  const failedCall = useRef<ServiceError | null>(null)
  const watched = useRef({ element: null as HTMLElement | null, stop: () => {} })

  const latest = useRef(config) // a call may end after a rendering that has changed the handlers
  useLayoutEffect(() => {
    latest.current = config
  })

  function report(reason: Error, sentence?: string) {
    setError(new UserFacingError(reason, sentence))
    latest.current.onError?.(reason)
  }

  const [session] = useState<Session>(() => ({
    async secret(existing) {
      try {
        const alive = await pageSession.secret(existing)
        const over = sessionError.current
        sessionError.current = null
        setError((shown) => (shown?.cause === over ? null : shown))
        setHasSession(true)
        return alive
      } catch (cause) {
        const reason = cause instanceof Error ? cause : new Error(String(cause))
        if (reason !== sessionError.current) report(reason, USER_MESSAGES.again) // callers that share a call share its failure
        sessionError.current = reason
        throw reason
      }
    },
    drop: (secret) => pageSession.drop(secret),
  }))
  const [listeners] = useState<CallListeners>(() => ({
    onMessage: (message) => latest.current.onMessage?.(message),
    onFailure: (failure) => (failedCall.current = failure),
  }))

  const chatKit = useChatKitItself({
    ...more,
    api: chatKitApi(session, listeners),
    theme: chatKitTheme(config.theme),
    onReady() {
      setStage('ready')
      setError((shown) => (shown?.cause instanceof ComponentError ? null : shown))
      more.onReady?.()
    },
    onResponseStart() {
      setError(null)
      more.onResponseStart?.()
    },
    onError({ error: itsWords }) {
      if (sessionError.current) return // of the call that ChatKit could not make, which is reported already
      const reason = failedCall.current ?? itsWords
      failedCall.current = null
      if (!service().domainKey) pageSession.drop() // it may be the secret that OpenAI no longer takes; our own service says so itself
      console.error('ChatKit:', reason)
      if (stage !== 'removed') report(reason) // else there is an error that says more
    },
  })
  const { ref, sendUserMessage } = chatKit

  const failToLoad = useEffectEvent((reason: ComponentError) => {
    console.error('ChatKit:', reason)
    report(reason)
  })

  useEffect(() => {
    let left = false
    session.secret().catch(() => {}) // reported already; before ChatKit asks for it, so that it shows at once whether there is a chat
    loadChatKit().then(
      () => left || setStage((now) => (now === 'loading' ? 'loaded' : now)),
      (reason: ComponentError) => left || failToLoad(reason),
    )
    if (!ref.current) {
      setStage('undrawn')
      failToLoad(
        new ComponentError(
          'not_drawn',
          '<ChatKit control={chat.control} /> is not drawn. Draw it while isReady is false, too.',
        ),
      )
    }
    return () => {
      left = true
    }
  }, [ref, session])

  useEffect(() => {
    if (stage === 'loaded' && ref.current) return limitLoading(failToLoad)
  }, [stage, ref])

  const watchElement = useEffectEvent(() => {
    const element = ref.current
    if (element === watched.current.element) return
    watched.current.stop()
    if (!element) setStage('undrawn')
    else if (watched.current.element || stage === 'undrawn') setStage('loaded')
    const stop = element
      ? watchRemoval(element, (reason) => {
          if (ref.current !== element) return setStage('undrawn') // by React: a drawer has closed, say
          setStage('removed')
          failToLoad(reason)
        })
      : () => {}
    watched.current = { element, stop }
  })
  useEffect(() => watchElement()) // after each rendering: React may have drawn another element, or none

  useEffect(
    () => () => {
      watched.current.stop()
      watched.current = { element: null, stop: () => {} }
    },
    [],
  )

  const chat = useMemo<UseChatKitReturn>(() => {
    if (service().domainKey) return chatKit
    return {
      ...chatKit,
      async sendUserMessage(message) {
        await sendUserMessage(message)
        latest.current.onMessage?.(message.text ?? messageText(message.content ?? []))
      },
    }
  }, [chatKit, sendUserMessage])
  return { chat, isReady: hasSession && stage === 'ready', error }
}
