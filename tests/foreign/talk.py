"""An asyncio client: sends its second argument, and prints what comes back until the end.

    python3 talk.py 127.0.0.1:8888 'hello\nquit\n'
    python3 talk.py unix:/tmp/quit.sock ''        # says nothing, and listens
"""

import asyncio
import sys


def connect(address):
    if address.startswith("unix:"):
        return asyncio.open_unix_connection(address.removeprefix("unix:"))
    host, port = address.rsplit(":", 1)
    return asyncio.open_connection(host.strip("[]"), port)


async def main(address, text):
    reader, writer = await connect(address)
    print("connected", flush=True)
    writer.write(text.encode().decode("unicode_escape").encode())
    await writer.drain()
    try:
        while line := await reader.readline():
            print(line.decode().rstrip("\n"), flush=True)
        print("the end", flush=True)
    except ConnectionResetError:
        print("a reset", flush=True)
    writer.close()
    await writer.wait_closed()


asyncio.run(main(*sys.argv[1:]))
