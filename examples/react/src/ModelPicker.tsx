import { useEffect, useId, useState, type KeyboardEvent } from 'react'
import { Icon } from './Icon'
import type { Model } from './types'

type Props = { models: Model[]; model?: string; onPickModel: (id: string) => void }

/** A combobox with a list (ARIA Authoring Practices). An id that isn't listed can be typed as well. */
export function ModelPicker({ models, model, onPickModel }: Props) {
  const [query, setQuery] = useState<string>() // undefined: closed
  const [active, setActive] = useState(0)
  const listId = useId()
  const open = query !== undefined
  const found = open ? search(models, query) : []
  const name = models.find(({ id }) => id === model)?.name ?? model ?? ''

  const show = (query: string) => {
    setQuery(query)
    setActive(query ? 0 : Math.max(0, search(models, '').findIndex(({ id }) => id === model)))
  }
  const close = () => setQuery(undefined)
  const pick = (id?: string) => {
    close()
    if (id && id !== model) onPickModel(id)
  }
  const onKeyDown = (event: KeyboardEvent) => {
    const move = { ArrowDown: 1, ArrowUp: -1 }[event.key]
    if (!open && (move || event.key === 'Enter')) show('')
    else if (move) setActive((active + move + found.length) % found.length)
    else if (event.key === 'Enter' && open) pick(found[active]?.id)
    else if (event.key === 'Escape' && open) close()
    else return
    event.preventDefault()
  }

  useEffect(() => {
    const option = document.getElementById(`${listId}-${active}`)
    const list = option?.parentElement
    if (!list) return
    const { offsetTop, offsetHeight } = option // scrollIntoView would scroll the page as well
    list.scrollTop = Math.min(offsetTop, Math.max(list.scrollTop, offsetTop + offsetHeight - list.clientHeight))
  }, [open, active, listId])

  return (
    <div className="picker">
      <input
        role="combobox"
        aria-label="Model"
        aria-autocomplete="list"
        aria-expanded={open}
        aria-controls={listId}
        aria-activedescendant={found.length ? `${listId}-${active}` : undefined}
        autoComplete="off"
        spellCheck={false}
        placeholder={!open ? 'Default model' : models.length ? `Search ${models.length} models` : 'Type a model’s id'}
        value={query ?? name}
        onClick={() => open || show('')}
        onChange={(event) => show(event.target.value)}
        onKeyDown={onKeyDown}
        onBlur={close}
      />
      <Icon name="chevron" />
      {open && (
        <ul role="listbox" id={listId} aria-label="Models">
          {found.map((option, index) => (
            <li
              key={option.id}
              id={`${listId}-${index}`}
              role="option"
              aria-selected={index === active}
              onMouseDown={(event) => event.preventDefault()} // keeps the focus, so the list stays
              onMouseMove={() => setActive(index)}
              onClick={() => pick(option.id)}
            >
              <span>{option.name ?? option.id}</span>
              <small>{price(option)}</small>
              <small>{[option.id, option.description?.split('\n', 1)[0]].filter(Boolean).join(' · ')}</small>
            </li>
          ))}
        </ul>
      )}
    </div>
  )
}

/** The models that have every word of the query in their name or id; the query itself as an id if there is none. */
function search(models: Model[], query: string): Model[] {
  const words = query.toLowerCase().split(/\s+/)
  const found = models.filter(({ id, name }) => words.every((word) => `${id} ${name}`.toLowerCase().includes(word)))
  if (found.length || !query.trim()) return found
  return [{ id: query.trim(), name: `Use “${query.trim()}”` }]
}

/** What a million tokens cost, in and out. */
function price({ pricing }: Model): string {
  const [input, output] = [Number(pricing?.prompt) * 1e6, Number(pricing?.completion) * 1e6]
  if (!(input >= 0 && output >= 0)) return ''
  if (input === 0 && output === 0) return 'free'
  return `$${round(input)} in, $${round(output)} out per M`
}

const round = (dollars: number) => String(Number(dollars.toPrecision(3)))
