// What a library has read, told line by line: the target's number, the event's name and its data.

/** One question that is asked: `tell` takes a line. */
export class Events {
  constructor(number, tell) {
    this.number = number
    this.tell = tell
  }

  /** An event; whether it was the last one. */
  take(name, data) {
    this.tell([this.number, name, data.replaceAll('\n', ' ')].join('\t'))
    const { done, error } = name === 'start' ? {} : JSON.parse(data)
    return Boolean(done || error)
  }

  /** What was read so far is thrown away: this library can't resume, and reads from the beginning. */
  again() {
    this.tell([this.number, '=', 'again'].join('\t'))
  }

  /** The library reads no more; `how` says whose idea that was. */
  ended(how) {
    this.tell([this.number, '=', how].join('\t'))
  }
}

export const names = ['start', 'message', 'reasoning', 'ping']

/** Anything that looks like EventSource. Nobody closes it: the relay has to end it. */
export const eventSource = (open) => (target, events) =>
  new Promise((resolve) => {
    const source = open(target)
    for (const name of names) source.addEventListener(name, (event) => events.take(name, event.data))
    source.addEventListener('error', () => setTimeout(() => source.readyState === 2 && resolve('ended by the relay')))
  })

/** The same for one that never ends by itself: it is closed at `done`. */
export const closedAtDone = (open) => (target, events) =>
  new Promise((resolve) => {
    const source = open(target)
    const take = (event) => {
      if (!events.take(event.type, event.data)) return
      source.close()
      resolve('closed at done')
    }
    for (const name of names) source.addEventListener(name, take)
  })

/** `attempt(lastEventId)` until it says that it has had the last event; what it throws is a broken connection. */
export async function untilDone(attempt) {
  for (let tries = 0; tries < 20; tries++) {
    try {
      if (await attempt()) return 'closed at done'
    } catch (error) {
      if (!isNetwork(error)) throw error
    }
  }
  throw new Error('no end in sight')
}

const isNetwork = (error) =>
  error instanceof TypeError ? /fetch|network|terminated/i.test(error.message) : /ECONN|aborted|ERR_NETWORK/.test(`${error.code} ${error.message}`)

/** fetch-event-source and its forks; `end` of a stream without `done` isn't an end. */
export const fetchEventSource = (library) => async (target, events) => {
  const controller = new AbortController()
  await library(target.url, {
    method: target.method,
    headers: target.headers,
    body: target.body,
    signal: controller.signal,
    onmessage: ({ event, data }) => events.take(event || 'message', data) && controller.abort(),
  })
  return 'closed at done'
}
