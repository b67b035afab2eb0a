import { fileURLToPath } from 'node:url'

const inRepository = (path: string) => fileURLToPath(new URL(`../../../${path}`, import.meta.url))

export const root = inRepository('')
export const example = inRepository('examples/react')
export const packages = inRepository('tests/browser/node_modules')
export const fonts = inRepository('tests/browser/fonts.conf')

/** What `make demo` runs. */
export const relayCommand = [inRepository('.venv/bin/python'), inRepository('server.py'), '--demo']
