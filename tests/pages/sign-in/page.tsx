'use client'

import { useState } from 'react'
import { ChatWindow } from '@/components/ChatWindow'
import { endSessions, setAuthToken } from '@/lib/chatkit-config'
import { threadKeeper } from '@/lib/last-thread'

/** A chat for whoever is signed in, with the token of the address's fragment. */
export default function Page() {
  const [user, setUser] = useState('')
  async function change(next: string) {
    if (user) await endSessions()
    setAuthToken(next)
    threadKeeper().onThreadChange({ threadId: null })
    setUser(next)
  }
  return (
    <main>
      <button type="button" onClick={() => void change(location.hash.slice(1))}>
        Sign in
      </button>
      <button type="button" onClick={() => void change('')}>
        Sign out
      </button>
      <ChatWindow key={user} />
    </main>
  )
}
