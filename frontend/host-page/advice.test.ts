// @vitest-environment jsdom
import { expect, it } from 'vitest'
import { ComponentError } from '../lib/chatkit-component'
import { ServiceError } from '../lib/errors'
import { adviceFor, missingSettings } from './advice'

it.each([
  [new ServiceError('…', '…', { status: 500, code: 'openai_session_not_created' }), /another project/],
  [
    new ServiceError('…', '…', { status: 403, code: 'origin_not_allowed' }),
    /add http:\/\/localhost:3000 to CHATKIT_ALLOWED_ORIGINS/,
  ],
  [new ComponentError('script_not_loaded', '…'), /blocker/],
  [new ComponentError('not_ready', '…'), /domain-allowlist/],
  [new ComponentError('removed', '…'), /domain-allowlist/],
  [new Error('Domain verification failed for https://chat.example.com'), /domain-allowlist/],
  [new ServiceError('Failed to fetch', '…'), /still running/],
  [new ServiceError('…', '…', { status: 502 }), /log/],
  [new ServiceError('An error of the demo.', '…', { code: 'custom' }), /log/],
  [new Error('something else'), /log/],
])('%s', (error, advice) => {
  expect(adviceFor(error)).toMatch(advice)
})

it('names all missing settings, where the error names only the first', () => {
  const missing = missingSettings('Not ready. Missing: OPENAI_API_KEY, CHATKIT_WORKFLOW_ID')
  const advice = adviceFor(new ServiceError('…', '…', { status: 500, code: 'openai_api_key_missing' }), missing)
  expect(advice).toMatch(/^Set OPENAI_API_KEY and CHATKIT_WORKFLOW_ID and restart/)
  expect(adviceFor(new ComponentError('script_not_loaded', '…'), missing)).toMatch(/blocker/)
})
