# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # The secure channel in a notebook
#
# Run the cells from top to bottom. You need what `requirements-notebook.txt` lists. Everything
# stays on this machine, and nothing here needs another program.
#
# 1. A server and a client
# 2. A message taken apart
# 3. A flipped bit: 100 becomes 900, or is refused
# 4. A padding oracle: a report read without its key

# %%
import sys

sys.path.insert(0, "..")  # a notebook starts in its own folder; the modules are one above

from contextlib import ExitStack

import matplotlib.pyplot as plt

from client import Client
from crypto_utils import (
    AES_KEY_BYTES,
    BLOCK_BYTES,
    NONCE_BYTES,
    TAG_BYTES,
    aes_cbc_decrypt,
    pkcs7_unpad,
)
from endpoint import DEMO_KEYS
from lab.weakened import without
from protocol_fsm import (
    CIPHERTEXT_AT,
    HEADER,
    ClientData,
    ClientHello,
    Direction,
    Keys,
    ProtocolError,
    ServerChallenge,
    Session,
)
from server import Server

# %% [markdown]
# ## 1 A server and a client
#
# The server runs in threads of its own until the last cell of this part. Port 0 means: any free
# port.

# %%
running = ExitStack()
server = running.enter_context(Server(DEMO_KEYS, port=0))
client = Client(1, None, *server.address)
client.connect()
client.report([20.5, 21.0])

# %% [markdown]
# A second client joins. Each `report` waits for the epoch to close. Client 1 does not report
# again, so the server waits for it for one second (the window), and then answers client 2
# alone.

# %%
second = Client(2, None, *server.address)
second.connect()
second.report([100.0])

# %% [markdown]
# A key is never shown, only its name: 8 hex digits. Report once more: the report moves the two
# keys of the client (C2S), and the answer moves the two of the server (S2C).

# %%
before = client.session.fingerprints()
client.report([20.5])
after = client.session.fingerprints()
for label, name in before.items():
    print(label, name, "->", after[label])

# %%
client.close()
second.close()
running.close()
print(client.session)

# %% [markdown]
# ## 2 A message taken apart
#
# A `Session` turns messages into bytes and back; it needs no socket. Here both ends are in one
# place, and the client's end also hands us its keys (`key_log`), which no adversary has.


# %%
def handshake(client: Session, server: Session) -> bytes:
    """Open a session between two ends, and return the CLIENT_HELLO."""
    hello = client.seal(ClientHello())
    server.open(hello)
    client.open(server.seal(ServerChallenge()))
    return hello


keys_seen: list[Keys] = []
alice = Session(1, DEMO_KEYS[1], Direction.C2S, key_log=keys_seen.append)
handshake(alice, Session(1, DEMO_KEYS[1], Direction.S2C))
keys = keys_seen[-1]  # those that the report is sealed under
report = alice.seal(ClientData([100.0, 20.5, 21.0, 22.5]))

opcode, client_id, round_number, direction = HEADER.unpack_from(report)
iv = report[HEADER.size : CIPHERTEXT_AT]
ciphertext = report[CIPHERTEXT_AT:-TAG_BYTES]
tag = report[-TAG_BYTES:]
print("opcode    ", opcode)
print("client id ", client_id)
print("round     ", round_number)
print("direction ", direction)
print("IV        ", iv.hex())
print("ciphertext", ciphertext.hex())
print("tag       ", tag.hex())

# %% [markdown]
# An eavesdropper has seen all of that. With the key, the ciphertext opens: a nonce, the
# readings as JSON, and padding.

# %%
padded = aes_cbc_decrypt(ciphertext, keys["C2S-ENC"][:AES_KEY_BYTES], iv)
plaintext = pkcs7_unpad(padded)
print("nonce  ", plaintext[:NONCE_BYTES].hex())
print("body   ", plaintext[NONCE_BYTES:].decode())
print("padding", padded[len(plaintext) :].hex(" "))

# %% [markdown]
# ## 3 A flipped bit
#
# The `1` of `100.0` is the second byte of the second plaintext block. In CBC it changes when
# the second byte of the *first* ciphertext block changes, and `1` and `9` differ in one bit. So
# flip bit 3 of byte 24 of the message. First against the whole protocol:


# %%
def flipped(message: bytes, at: int, mask: int) -> bytes:
    """Return the message with the bits of `mask` flipped in one byte."""
    return message[:at] + bytes([message[at] ^ mask]) + message[at + 1 :]


def deliver_flipped(kind: type[Session]) -> None:
    """Send a report between two ends of this kind, flip one bit of it on the way, and open it."""
    sender = kind(1, DEMO_KEYS[1], Direction.C2S)
    receiver = kind(1, DEMO_KEYS[1], Direction.S2C)
    handshake(sender, receiver)
    sealed = sender.seal(ClientData([100.0, 20.5, 21.0, 22.5]))
    try:
        print("accepted:", receiver.open(flipped(sealed, CIPHERTEXT_AT + 1, 0x08)))
    except ProtocolError as error:
        print("refused:", error)


deliver_flipped(Session)

# %% [markdown]
# Then between two ends that do not check the tag:

# %%
deliver_flipped(without(["tag"]).session)

# %% [markdown]
# ## 4 A padding oracle
#
# Three rules less: the server looks at the padding before the tag, it answers bad padding
# differently, and a new session does not get new keys. Now it answers one question for anyone:
# "is the padding of this ciphertext right?" That is enough to read a recorded report, byte by
# byte, from the end of a block.

# %%
Weak = without(["tag-first", "uniform-answers", "binding"]).session
victim = Weak(1, DEMO_KEYS[1], Direction.C2S)
hello = handshake(victim, Weak(1, DEMO_KEYS[1], Direction.S2C))
recorded = victim.seal(ClientData([100.0, 20.5, 21.0, 22.5]))


def answer(untagged: bytes) -> int:
    """Return the opcode of the server's answer to a report without a right tag."""
    server_end = Weak(1, DEMO_KEYS[1], Direction.S2C)
    server_end.open(hello)
    server_end.seal(ServerChallenge())
    try:
        server_end.open(untagged + bytes(TAG_BYTES))
    except ProtocolError as error:
        return error.farewell[0]
    raise AssertionError("a tag of zeros was accepted")


start = recorded[:CIPHERTEXT_AT]
first, block = (
    recorded[at : at + BLOCK_BYTES] for at in (CIPHERTEXT_AT, CIPHERTEXT_AT + BLOCK_BYTES)
)
good_padding = answer(recorded[:-TAG_BYTES])
bad_padding = answer(start + first + block)
print("the two answers:", good_padding, bad_padding)


# %% [markdown]
# To read the byte before those that are known, make all of them hold the right padding, and try
# the 256 values of this one. The answer says when it fits.


# %%
def next_byte(known: bytes) -> tuple[int, int]:
    """Return the byte before `known`, and how many questions that took."""
    length = len(known) + 1  # of the padding that we want to see
    for guess in range(256):
        mask = bytes(BLOCK_BYTES - length) + bytes([guess]) + bytes(length ^ b for b in known)
        forged = bytes(old ^ new for old, new in zip(first, mask))
        if answer(start + forged + block) == good_padding:
            return guess ^ length, guess + 1
    raise AssertionError("no guess had the right padding")


known = b""
questions = [0]
while len(known) < BLOCK_BYTES:
    value, asked = next_byte(known)
    known = bytes([value]) + known
    questions.append(questions[-1] + asked)
print(known.decode(), "in", questions[-1], "questions")

# %%
figure, axes = plt.subplots()
axes.plot(questions, marker="o", label="asked")
axes.plot([256 * count for count in range(BLOCK_BYTES + 1)], "--", label="at most: 256 a byte")
axes.set_xlabel("bytes read")
axes.set_ylabel("questions to the server")
axes.set_title("What a padding oracle costs")
axes.legend()
plt.show()

# %% [markdown]
# The line rises by at most 256 questions per byte. Guessing the 128-bit key instead would take
# about 2^127 attempts.
#
# Try next:
#
# - Put one of the three rules back (leave it out of the list for `without`). What do the two
#   answers look like now, and where does the attack stop?
# - Read the next block: which two blocks of the recording do you need?
# - Flip bit 3 of another byte. Which flips does the server accept without the tag, and which
#   rule refuses the others?
