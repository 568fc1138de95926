import { expect, it } from 'vitest'
import { ComponentError } from '../lib/chatkit-component'
import { ServiceError } from '../lib/errors'
import { adviceFor } from './advice'

it.each([
  [new ServiceError('…', '…', { status: 500, code: 'openai_session_not_created' }), /another project/],
  [new ServiceError('…', '…', { status: 403, code: 'origin_not_allowed' }), /PROXY_HOPS/],
  [new ComponentError('script_not_loaded', '…'), /blocker/],
  [new ComponentError('not_ready', '…'), /domain-allowlist/],
  [new ComponentError('removed', '…'), /domain-allowlist/],
  [new Error('Domain verification failed for https://chat.example.com'), /domain-allowlist/],
  [new ServiceError('Failed to fetch', '…'), /still running/],
  [new ServiceError('…', '…', { status: 502 }), /log/],
  [new Error('something else'), /log/],
])('%s', (error, advice) => {
  expect(adviceFor(error)).toMatch(advice)
})
