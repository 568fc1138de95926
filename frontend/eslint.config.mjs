import compat from 'eslint-plugin-compat'
import jsxA11y from 'eslint-plugin-jsx-a11y' // declares ESLint 9 as its last, but runs on 10: hence "overrides"
import reactHooks from 'eslint-plugin-react-hooks'
import { parser } from 'typescript-eslint'

export default [
  { ignores: ['.next*/', '.e2e/', 'next-env.d.ts'] },
  {
    files: ['**/*.{ts,tsx}'],
    languageOptions: { parser, parserOptions: { ecmaFeatures: { jsx: true } } },
    linterOptions: { reportUnusedDisableDirectives: 'error' },
  },
  {
    // Report APIs that a browser of the contract ("browserslist" in package.json) lacks.
    ...compat.configs['flat/recommended'],
    files: ['{app,components,host-page,lib}/**/*.{ts,tsx}', 'instrumentation-client.ts'],
    ignores: ['**/*.test.{ts,tsx}'],
  },
  { ...reactHooks.configs.flat['recommended-latest'], files: ['**/*.{ts,tsx}'] },
  { ...jsxA11y.flatConfigs.strict, files: ['**/*.tsx'] },
]
