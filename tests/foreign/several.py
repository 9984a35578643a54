"""Many asyncio clients at once, while one of them stops the server.

One is silent, one waits for a slow answer, twenty chatter; then another says `quit`. The silent one
sees the end at once, the slow one gets its answer, the chatterers whole answers and the end.
"""

import asyncio
import sys
import time

HOST, PORT = sys.argv[1].rsplit(":", 1)


async def chatter(number, busy):
    reader, writer = await asyncio.open_connection(HOST, PORT)
    count = 0
    while True:
        line = f"{number} says {count}\n".encode()
        try:
            writer.write(line)
            await writer.drain()
            answer = await reader.readline()
        except (ConnectionResetError, BrokenPipeError):
            # It spoke after the server's end had come: there was nothing to be answered.
            answer = b""
        if not answer:
            break
        assert answer == line, (answer, line)
        count += 1
        if count == 10:
            busy.release()
    writer.close()
    return count


async def main():
    silent, silent_writer = await asyncio.open_connection(HOST, PORT)
    await asyncio.sleep(1.1)  # past the time that a new client has for its first word
    slow, slow_writer = await asyncio.open_connection(HOST, PORT)
    slow_writer.write(b"hello\nslow\n")
    assert await slow.readline() == b"hello\n"

    busy = asyncio.Semaphore(0)
    chatterers = [asyncio.create_task(chatter(number, busy)) for number in range(20)]
    for _ in chatterers:
        await busy.acquire()

    last, last_writer = await asyncio.open_connection(HOST, PORT)
    start = time.monotonic()
    last_writer.write(b"quit\n")
    assert await last.read() == b"bye\n"
    assert await silent.read() == b""
    assert all(count >= 10 for count in await asyncio.gather(*chatterers))
    assert time.monotonic() - start < 1, "somebody waited for the slow one"
    try:
        await asyncio.open_connection(HOST, PORT)
    except ConnectionRefusedError:
        pass
    else:
        raise AssertionError("a new client was let in")

    assert await slow.read() == b"done\n"
    for writer in (silent_writer, slow_writer, last_writer):
        writer.close()
        await writer.wait_closed()
    print("all is well")


asyncio.run(asyncio.wait_for(main(), 30))
