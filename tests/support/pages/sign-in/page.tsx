'use client'

import { useState } from 'react'
import { ChatWindow } from '@/components/ChatWindow'
import { endSessions, setAuthToken } from '@/lib/chatkit-config'

/** Signing in and out as in docs/sign-in.md, with the token from the URL's fragment. */
export default function Page() {
  const [user, setUser] = useState('')
  async function change(next: string) {
    if (user) await endSessions()
    setAuthToken(next)
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
