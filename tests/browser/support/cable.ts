import { once } from 'node:events'
import { connect, createServer, type AddressInfo, type Server, type Socket } from 'node:net'

/** A cable to nowhere yet, while `use` runs. */
export async function withCable(use: (cable: Cable) => Promise<void>) {
  const cable = await Cable.to(0)
  await use(cable)
  cable.remove()
}

/** TCP between the browser and a port of this machine that can be cut: what a lost network is to a stream. */
export class Cable {
  private readonly ends = new Set<Socket>()
  private readonly server: Server
  private isCut = false

  private constructor(private to: number) {
    this.server = createServer((near) => {
      if (this.isCut) return near.destroy()
      const far = connect(this.to, '127.0.0.1')
      for (const [end, other] of [[near, far], [far, near]] as const) {
        this.ends.add(end)
        end.pipe(other)
        end.on('error', () => other.destroy())
        end.on('close', () => {
          this.ends.delete(end)
          other.destroy()
        })
      }
    })
  }

  static async to(port: number): Promise<Cable> {
    const cable = new Cable(port)
    await once(cable.server.listen(0, '127.0.0.1'), 'listening')
    return cable
  }

  get port(): number {
    return (this.server.address() as AddressInfo).port
  }

  /** Ends every connection, and every new one, until it is mended. */
  cut() {
    this.isCut = true
    for (const end of this.ends) end.destroy()
  }

  /** From now on it leads to another port, and is whole. */
  plugInto(port: number) {
    this.cut()
    this.to = port
    this.mend()
  }

  mend() {
    this.isCut = false
  }

  remove() {
    this.cut()
    this.server.close()
  }
}
