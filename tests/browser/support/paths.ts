import { fileURLToPath } from 'node:url'

const inRepository = (path: string) => fileURLToPath(new URL(`../../../${path}`, import.meta.url))

export const root = inRepository('')
export const example = inRepository('examples/react')

/** What `make demo` runs. */
export const relayCommand = [inRepository('.venv/bin/python'), inRepository('server.py'), '--demo']
