'use client'

/** The contract's `useChatKit(config)`, a thin wrapper over the hook of `@openai/chatkit-react`. */

import { type UseChatKitOptions, type UseChatKitReturn, useChatKit as useChatKitItself } from '@openai/chatkit-react'
import { useEffect, useEffectEvent, useMemo, useRef, useState } from 'react'
import { ComponentError, limitLoading, loadChatKit, watchRemoval } from './chatkit-component'
import type { ChatKitConfig } from './chatkit-config'
import { DOMAIN_KEY, chatKitApi, chatKitTheme, messageText } from './chatkit-options'
import { PageSession, type Session } from './page-session'

export interface Chat {
  /**
   * What the hook of `@openai/chatkit-react` returns. `<ChatKit control={chat.control} />` draws the chat: from the start, and
   * alone in an element of its own, because ChatKit may remove itself, and React can't cope with that beside others.
   */
  chat: UseChatKitReturn
  /** There is a session, and the component has loaded. */
  isReady: boolean
  /** What went wrong last, until something works again. `userMessage(error)` is the sentence to show. */
  error: Error | null
}

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
  const [hasScript, setHasScript] = useState(false)
  const [hasLoaded, setHasLoaded] = useState(false)
  const [error, setError] = useState<Error | null>(null)
  const sessionError = useRef<Error | null>(null)

  function report(reason: Error) {
    setError(reason)
    config.onError?.(reason)
  }

  const session: Session = {
    async secret(existing) {
      try {
        const alive = await pageSession.secret(existing)
        const over = sessionError.current
        sessionError.current = null
        setError((shown) => (shown === over ? null : shown))
        setHasSession(true)
        return alive
      } catch (cause) {
        const reason = cause instanceof Error ? cause : new Error(String(cause))
        if (reason !== sessionError.current) report(reason) // callers that share a call share its failure
        sessionError.current = reason
        throw reason
      }
    },
    drop: (secret) => pageSession.drop(secret),
  }

  const chatKit = useChatKitItself({
    ...more,
    api: chatKitApi(session, DOMAIN_KEY, config.onMessage),
    theme: chatKitTheme(config.theme),
    onReady() {
      setHasLoaded(true)
      setError((shown) => (shown instanceof ComponentError ? null : shown))
      more.onReady?.()
    },
    onResponseStart() {
      setError(null)
      more.onResponseStart?.()
    },
    onError({ error: reason }) {
      if (sessionError.current) return // ChatKit's words for the call that it could not make, which is reported already
      if (!DOMAIN_KEY) pageSession.drop() // it may be the secret that OpenAI no longer takes; our own service says so itself
      report(reason)
    },
  })

  const reportLater = useEffectEvent(report)
  const getSession = useEffectEvent(() => {
    session.secret().catch(() => {}) // reported already
  })

  useEffect(() => {
    let left = false
    getSession() // before ChatKit asks for it: whether there is a chat at all shows at once
    loadChatKit().then(
      () => left || setHasScript(true),
      (reason: Error) => left || reportLater(reason),
    )
    return () => {
      left = true
    }
  }, [])

  useEffect(() => {
    if (hasScript && !hasLoaded) return limitLoading(reportLater)
  }, [hasScript, hasLoaded])

  const { ref, sendUserMessage } = chatKit
  useEffect(() => {
    if (ref.current) return watchRemoval(ref.current, reportLater)
    reportLater(new Error('<ChatKit control={chat.control} /> is not drawn. Draw it from the start, while isReady is false, too.'))
  }, [ref])

  const tellMessage = config.onMessage
  const chat = useMemo<UseChatKitReturn>(() => {
    if (DOMAIN_KEY || !tellMessage) return chatKit
    return {
      ...chatKit,
      async sendUserMessage(message) {
        await sendUserMessage(message)
        tellMessage(message.text ?? messageText(message.content ?? []))
      },
    }
  }, [chatKit, sendUserMessage, tellMessage])
  return { chat, isReady: hasSession && hasLoaded, error }
}
