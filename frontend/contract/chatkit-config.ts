import type { ChatKitConfig } from '@openai/chatkit-react'

const API_URL = process.env.NEXT_PUBLIC_API_URL || 'http://localhost:8000'

export const chatKitConfig: ChatKitConfig = {
  api: {
    async getClientSecret(existing?: string): Promise<string> {
      // Reuse existing secret if available
      if (existing) {
        console.log('Reusing existing ChatKit client secret')
        return existing
      }

      try {
        console.log('Creating new ChatKit session')

        // Call backend endpoint
        const response = await fetch(`${API_URL}/api/chatkit/sessions`, {
          method: 'POST',
          headers: {
            'Content-Type': 'application/json',
            // Optional: Add JWT token for user identification
            // 'Authorization': `Bearer ${jwtToken}`
          }
        })

        // Handle HTTP errors
        if (!response.ok) {
          throw new Error(`Session creation failed: ${response.statusText}`)
        }

        // Parse response
        const data = await response.json()
        const clientSecret = data.data?.client_secret

        if (!clientSecret) {
          throw new Error('No client secret in response')
        }

        console.log('Got ChatKit session:', data.data.session_id)
        return clientSecret
      } catch (error) {
        console.error('Error getting ChatKit session:', error)
        throw error
      }
    }
  },

  // Optional: Customize ChatKit appearance
  theme: {
    primaryColor: '#0070f3', // Next.js blue
    darkMode: false
  }
}
