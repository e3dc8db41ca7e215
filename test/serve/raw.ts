/** Requests below what an HTTP client would send. */
import { connect, type Socket } from 'node:net';

export interface RawAnswer {
  status: number;
  body: string;
}

/**
 * Send bytes as they are and read until the server has answered or closed.
 * @param send may go on writing until `done`
 */
export function raw(url: string, send: (socket: Socket) => void): Promise<RawAnswer> {
  const { hostname, port } = new URL(url);
  return new Promise((resolve, reject) => {
    let text = '';
    const socket = connect(Number(port), hostname, () => send(socket));
    const finish = () => {
      const status = Number(/^HTTP\/1\.1 (\d{3})/.exec(text)?.[1] ?? 0);
      resolve({
        status,
        body: text.split('\r\n\r\n').slice(1).join('\r\n\r\n'),
      });
    };
    socket.on('data', (chunk) => {
      text += chunk.toString('latin1');
      const length = /content-length: (\d+)/i.exec(text)?.[1];
      const body = text.indexOf('\r\n\r\n');
      if (length && body >= 0 && text.length >= body + 4 + Number(length)) socket.destroy();
    });
    socket.on('close', finish);
    socket.on('error', (error: NodeJS.ErrnoException) =>
      error.code === 'EPIPE' || error.code === 'ECONNRESET' ? undefined : reject(error),
    );
  });
}

export const postHead = (path: string, headers = 'content-type: application/json\r\n'): string =>
  `POST ${path} HTTP/1.1\r\nhost: localhost\r\n${headers}`;
