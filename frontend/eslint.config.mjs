// Whether the code calls nothing that a browser of the contract's table (package.json, "browserslist") lacks.
import compat from 'eslint-plugin-compat'
import { parser } from 'typescript-eslint'

export default [
  { ignores: ['.next*/', '.e2e/', 'next-env.d.ts'] },
  {
    ...compat.configs['flat/recommended'],
    files: ['{app,components,host-page,lib}/**/*.{ts,tsx}', 'instrumentation-client.ts'],
    ignores: ['**/*.test.{ts,tsx}'],
    languageOptions: { parser, parserOptions: { ecmaFeatures: { jsx: true } } },
    linterOptions: { reportUnusedDisableDirectives: 'error' },
  },
]
