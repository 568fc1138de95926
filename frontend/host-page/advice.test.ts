// @vitest-environment jsdom
import { expect, it } from 'vitest'
import { ComponentError } from '../lib/chatkit-component'
import { SessionError } from '../lib/chatkit-config'
import { adviceFor } from './advice'

it.each([
  [new SessionError('…', '…', { status: 500, code: 'openai_session_not_created' }), /another project/],
  [new SessionError('…', '…', { status: 403, code: 'origin_not_allowed' }), /add http:\/\/localhost:3000 to CHATKIT_ALLOWED_ORIGINS/],
  [new ComponentError('script_not_loaded', '…'), /blocker/],
  [new ComponentError('not_ready', '…'), /domain-allowlist/],
  [new ComponentError('removed', '…'), /domain-allowlist/],
  [new Error('Domain verification failed for https://chat.example.com'), /domain-allowlist/],
  [new SessionError('Failed to fetch', '…'), /still running/],
  [new SessionError('…', '…', { status: 502 }), /log/],
  [new Error('something else'), /log/],
])('%s', (error, advice) => {
  expect(adviceFor(error)).toMatch(advice)
})
