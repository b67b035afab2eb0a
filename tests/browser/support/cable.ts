import { once } from 'node:events'
import { connect, createServer, type AddressInfo, type Server, type Socket } from 'node:net'

/** TCP between the browser and a port of this machine that can be cut: what a lost network is to a stream. */
export class Cable {
  private readonly ends = new Set<Socket>()
  private readonly server: Server
  private isCut = false

  private constructor(to: number) {
    this.server = createServer((near) => {
      if (this.isCut) return near.destroy()
      const far = connect(to, '127.0.0.1')
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

  mend() {
    this.isCut = false
  }

  remove() {
    this.cut()
    this.server.close()
  }
}
