'use client'

import { ChatKit } from '@openai/chatkit-react'
import { useState, useSyncExternalStore } from 'react'
import { type ChatKitConfig, chatKitConfig, userMessage } from '@/lib/chatkit-config'
import { lastThread, threadKeeper } from '@/lib/last-thread'
import { useChatKit } from '@/lib/use-chatkit'

/** A chat that says what it is waiting for, goes on where this browser left it, and can be tried again when it fails. */
export function ChatWindow({ config = chatKitConfig }: { config?: ChatKitConfig }) {
  const [attempt, setAttempt] = useState(0)
  return <Chat key={attempt} config={config} onRetry={() => setAttempt(attempt + 1)} />
}

function Chat({ config, onRetry }: { config: ChatKitConfig; onRetry: () => void }) {
  const darkMode = usePrefersDark()
  const [initialThread] = useState(lastThread)
  const [{ onError, ...threadEvents }] = useState(threadKeeper)

  const { chat, isReady, error } = useChatKit(
    {
      ...config,
      theme: { ...config.theme, darkMode },
      onError(reason) {
        onError()
        config.onError?.(reason)
      },
    },
    { initialThread, ...threadEvents },
  )

  return (
    <section className="chat" aria-label="Chat" aria-busy={!isReady && !error}>
      <p role="status" className={isReady ? 'visually-hidden' : 'notice'}>
        {isReady ? 'Chat interface loaded' : !error && 'Loading chat...'}
      </p>
      {error && (
        <div role="alert" className="notice error">
          <p>Error: {userMessage(error)}</p>
          {!isReady && (
            <button type="button" onClick={onRetry}>
              Try again
            </button>
          )}
        </div>
      )}
      {/* A parent of its own: on a host that OpenAI does not allow, ChatKit removes itself, and React would stumble over that. */}
      <div className={isReady ? 'chatkit' : 'chatkit loading'}>
        <ChatKit control={chat.control} />
      </div>
    </section>
  )
}

function usePrefersDark(): boolean {
  const query = () => window.matchMedia('(prefers-color-scheme: dark)')
  return useSyncExternalStore(
    (changed) => {
      const media = query()
      media.addEventListener('change', changed)
      return () => media.removeEventListener('change', changed)
    },
    () => query().matches,
    () => false,
  )
}
