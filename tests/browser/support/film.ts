import { crc32 } from 'node:zlib'
import type { Page } from '@playwright/test'

export type Frame = { png: Buffer; seconds: number }

/** An animated PNG (https://www.w3.org/TR/png-3/#apng-frame-based-animation), without end, of pictures that have one size. */
export function film(frames: Frame[]): Buffer {
  const [first, ...others] = frames.map(({ png }) => chunksOf(png))
  const header = first!.get('IHDR')!
  let sequence = 0
  const shown = (seconds: number) => chunk('fcTL', uint32(sequence++), header.subarray(0, 8), uint32(0, 0), uint16(seconds * 10, 10), uint16(0))
  const parts = [
    frames[0]!.png.subarray(0, 8), // what every PNG begins with
    chunk('IHDR', header),
    chunk('acTL', uint32(frames.length, 0)),
    shown(frames[0]!.seconds),
    chunk('IDAT', first!.get('IDAT')!),
    ...others.flatMap((other, index) => [shown(frames[index + 1]!.seconds), chunk('fdAT', uint32(sequence++), other.get('IDAT')!)]),
    chunk('IEND'),
  ]
  return Buffer.concat(parts)
}

/** Whether nobody could tell them apart: no colour of a point differs by more than a few of its 256 steps. A page decodes them. */
export function looksLike(page: Page, ...films: Buffer[]): Promise<boolean> {
  const urls = films.map((film) => `data:image/png;base64,${film.toString('base64')}`)
  return page.evaluate(async (urls) => {
    const points = async (url: string) => {
      const decoder = new ImageDecoder({ data: await (await fetch(url)).arrayBuffer(), type: 'image/png' })
      await Promise.all([decoder.tracks.ready, decoder.completed])
      const frames = []
      for (let frameIndex = 0; frameIndex < decoder.tracks.selectedTrack!.frameCount; frameIndex++) {
        const { image } = await decoder.decode({ frameIndex })
        const canvas = new OffscreenCanvas(image.displayWidth, image.displayHeight).getContext('2d')!
        canvas.drawImage(image, 0, 0)
        frames.push(canvas.getImageData(0, 0, image.displayWidth, image.displayHeight).data)
      }
      return frames
    }
    const [one, other] = await Promise.all(urls.map(points))
    return one!.length === other!.length && one!.every((frame, index) => frame.every((value, at) => Math.abs(value - other![index]![at]!) < 16))
  }, urls)
}

/** The data of each type; that of several chunks of one type is one. */
function chunksOf(png: Buffer): Map<string, Buffer> {
  const chunks = new Map<string, Buffer>()
  for (let at = 8; at < png.length; at += 12 + png.readUInt32BE(at)) {
    const type = png.toString('latin1', at + 4, at + 8)
    const data = png.subarray(at + 8, at + 8 + png.readUInt32BE(at))
    chunks.set(type, Buffer.concat([chunks.get(type) ?? Buffer.of(), data]))
  }
  return chunks
}

function chunk(type: string, ...data: Buffer[]): Buffer {
  const body = Buffer.concat([Buffer.from(type, 'latin1'), ...data])
  return Buffer.concat([uint32(body.length - 4), body, uint32(crc32(body))])
}

const uint32 = (...numbers: number[]) => Buffer.concat(numbers.map((number) => Buffer.of(number >>> 24, number >>> 16, number >>> 8, number)))
const uint16 = (...numbers: number[]) => Buffer.concat(numbers.map((number) => Buffer.of(number >>> 8, number)))
