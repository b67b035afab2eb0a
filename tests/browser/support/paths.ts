import { existsSync, readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'

const inRepository = (path: string) => fileURLToPath(new URL(`../../../${path}`, import.meta.url))

export const root = inRepository('')
export const example = inRepository('examples/react')
export const packages = inRepository('tests/browser/node_modules')
export const fonts = inRepository('tests/browser/fonts.conf')

/** What `make demo` runs. */
export const relayCommand = [inRepository('.venv/bin/python'), inRepository('server.py'), '--demo']

/** The blocks of TSX of a page whose own imports are there in a folder. */
export function shownFor(folder: string, page: string): string[] {
  const blocks = [...readFileSync(root + page, 'utf8').matchAll(/^```tsx\n(.*?)^```$/gms)].map(([, code]) => code!)
  const fits = (code: string) => [...code.matchAll(/from '\.(\/.*?)'/g)].every(([, file]) => existsSync(`${folder}${file}.ts`))
  return blocks.filter(fits)
}
