-- The core protocol of the lab in Wireshark and tshark [PROTOCOL.md 3.1 to 3.5].
--
--     tshark -X lua_script:classroom/wireshark/seclab.lua -r run.pcapng -Y seclab
--
-- It shows what anybody on the wire sees, and says what looks wrong about it. It has no keys and
-- does not decrypt (Wireshark 4.0 gives Lua no ciphers): plaintexts and verdicts are read from the
-- key log, which the ends themselves have written [classroom/KEYLOG.md]. README.md beside this file
-- says how to install it.

local PORT = 9999
local MIN_MESSAGE, MAX_MESSAGE, OVERHEAD, BLOCK = 71, 65527, 55, 16
local IV_AT, CIPHERTEXT_AT, TAG_BYTES, NONCE_BYTES = 7, 23, 32, 16

local HELLO, CHALLENGE, DATA, RESPONSE, DESYNC, TERMINATE = 10, 20, 30, 40, 50, 60
local OPCODES = {
    [HELLO] = "CLIENT_HELLO", [CHALLENGE] = "SERVER_CHALLENGE", [DATA] = "CLIENT_DATA",
    [RESPONSE] = "SERVER_AGGR_RESPONSE", [DESYNC] = "KEY_DESYNC_ERROR", [TERMINATE] = "TERMINATE",
}
local DIRECTIONS = { [0] = "C2S", [1] = "S2C" }
local SENDER = { [HELLO] = 0, [DATA] = 0, [CHALLENGE] = 1, [RESPONSE] = 1 }  -- else: either
local STATUSES = {
    [0] = "OK", "GOODBYE", "VIOLATION", "REPLACED", "SHUTDOWN", "TIMEOUT",
}

local seclab = Proto("seclab", "Secure Channel Lab")
seclab.prefs.keylog = Pref.string("Key log", "", "File that server.py and client.py --keylog write")

local f = {
    length = ProtoField.uint16("seclab.length", "Length", base.DEC),
    opcode = ProtoField.uint8("seclab.opcode", "Opcode", base.DEC, OPCODES),
    client_id = ProtoField.uint8("seclab.client_id", "Client id", base.DEC),
    round = ProtoField.uint32("seclab.round", "Round", base.DEC),
    direction = ProtoField.uint8("seclab.direction", "Direction", base.DEC, DIRECTIONS),
    iv = ProtoField.bytes("seclab.iv", "IV"),
    ciphertext = ProtoField.bytes("seclab.ciphertext", "Ciphertext"),
    tag = ProtoField.bytes("seclab.tag", "Tag"),
    verdict = ProtoField.string("seclab.verdict", "Verdict"),
    same_as = ProtoField.framenum("seclab.same_as", "Same IV and tag as in frame"),
    plaintext = ProtoField.bytes("seclab.plaintext", "Plaintext"),
    nonce = ProtoField.bytes("seclab.nonce", "Nonce"),
    client_nonce = ProtoField.bytes("seclab.client_nonce", "Client nonce"),
    server_nonce = ProtoField.bytes("seclab.server_nonce", "Server nonce"),
    version = ProtoField.uint8("seclab.version", "Protocol version", base.DEC),
    status = ProtoField.uint8("seclab.status", "Status", base.DEC, STATUSES),
    body = ProtoField.string("seclab.body", "Body"),
}
seclab.fields = f

local ERROR, WARN, NOTE = expert.severity.ERROR, expert.severity.WARN, expert.severity.NOTE
local function info(name, text, group, severity)
    return ProtoExpert.new("seclab." .. name, text, group, severity)
end
local e = {
    malformed = info("malformed", "A length that no message has", expert.group.MALFORMED, ERROR),
    cut = info("cut", "Cut: not all of this message is here", expert.group.UNDECODED, WARN),
    unknown = info("unknown_opcode", "Unknown opcode", expert.group.PROTOCOL, ERROR),
    direction = info("wrong_direction", "Wrong direction", expert.group.PROTOCOL, WARN),
    round = info("round_jump", "Unexpected round", expert.group.SEQUENCE, WARN),
    replay = info("replay", "Message seen before", expert.group.SEQUENCE, WARN),
    elsewhere = info("elsewhere", "Message seen in another connection",
                     expert.group.SEQUENCE, NOTE),
    refused = info("refused", "Refused", expert.group.SECURITY, ERROR),
    changed = info("changed", "Changed on its way", expert.group.SECURITY, ERROR),
    unsealed = info("unsealed", "Not in the key log: no end that logs has sealed or accepted this",
                    expert.group.SECURITY, WARN),
}
seclab.experts = { e.malformed, e.cut, e.unknown, e.direction, e.round, e.replay, e.elsewhere, e.refused,
                   e.changed, e.unsealed }

local stream_of, interface_of = Field.new("tcp.stream"), Field.new("frame.interface_id")

-- The key log --------------------------------------------------------------------------------------

local log  -- what has been read of it; nil if there is none

local function hex_of(range)
    return range:bytes():tohex():lower()
end

-- Take in what has been written since the last time; half a line is left for the next time.
local function read_more()
    local file = io.open(seclab.prefs.keylog, "rb")
    if not file then return end
    if not file:read(0) then return file:close() end  -- empty, or a folder
    file:seek("set", log.place)
    for line in file:lines("*L") do
        if line:sub(-1) ~= "\n" then break end
        log.place = log.place + #line
        local words = line:gsub("^\xEF\xBB\xBF", ""):gsub("#.*", "")
        local who, verdict, message, plaintext =
            words:match("^%s*core%-text%s+(%a+)%s+(%a+)%s+(%x+)%s+([%x-]+)%s*$")
        if who then
            message, plaintext = message:lower(), plaintext:lower()
            local known = log.messages[message] or { said = {} }
            log.messages[message] = known
            local is_good = verdict == "sealed" or verdict == "accepted"
            local said = is_good and verdict .. " by the " .. who
                          or "refused by the " .. who .. ": " .. verdict
            if not known.said[said] then
                known.said[said] = true
                known.said[#known.said + 1] = said
            end
            known.refused = known.refused or not is_good
            known.accepted = known.accepted or verdict == "accepted"
            if plaintext ~= "-" then
                known.plaintext = plaintext
                log.ivs[message:sub(2 * IV_AT + 1, 2 * CIPHERTEXT_AT)] = true
                log.tags[message:sub(-2 * TAG_BYTES)] = true
            end
        end
    end
    file:close()
end

local function look_up(message)
    if not log then return nil end
    if not log.messages[message] then read_more() end  -- in a live capture it grows
    return log.messages[message] or { said = {} }
end

-- What was seen before -----------------------------------------------------------------------------

-- Frames are shown in any order and more than once, so what depends on earlier ones is found out
-- when a frame is seen for the first time, and kept by frame and place in it.
local rounds, seen, findings  -- by connection; by message and where; by frame and place

function seclab.init()
    rounds, seen, findings, log = {}, {}, {}, nil
    if seclab.prefs.keylog ~= "" then
        log = { place = 0, messages = {}, ivs = {}, tags = {} }
        read_more()
    end
end

-- Return the round that the next message should have, nil if that is not known.
local function round_after(opcode, round)
    if opcode == CHALLENGE then return 1 end
    if opcode == RESPONSE then return round + 1 end
    if opcode == TERMINATE or opcode == DESYNC then return nil end
    return round
end

-- A message that is cut has no tag by which it could be known again.
local function find_out(pinfo, message, opcode, round, is_cut)
    local stream = stream_of() and stream_of().value or 0
    local interface = interface_of() and interface_of().value or 0
    local found, expected = {}, rounds[stream]
    if expected and round ~= expected and opcode ~= TERMINATE and opcode ~= DESYNC then
        found.expected = expected
    elseif OPCODES[opcode] then
        rounds[stream] = round_after(opcode, round)
    end
    if is_cut then return found end
    local id = message:sub(2 * IV_AT + 1, 2 * CIPHERTEXT_AT) .. message:sub(-2 * TAG_BYTES)
    local here, nearby = id .. " stream " .. stream, id .. " interface " .. interface
    found.same_as = seen[here] or seen[nearby]
    found.is_replay = seen[here] ~= nil
    seen[here], seen[nearby] = seen[here] or pinfo.number, seen[nearby] or pinfo.number
    return found
end

-- One message --------------------------------------------------------------------------------------

local function show_plaintext(hex, tree, opcode, direction)
    local range = ByteArray.new(hex):tvb("Plaintext")()
    local branch = tree:add(f.plaintext, range)
    local at = 0
    local function take(field, bytes)
        if at + bytes <= range:len() and bytes > 0 then branch:add(field, range(at, bytes)) end
        at = at + bytes
    end
    if direction == 1 then take(f.status, 1) else take(f.nonce, NONCE_BYTES) end
    if opcode == HELLO then
        take(f.version, 1)
    elseif opcode == CHALLENGE then
        take(f.client_nonce, NONCE_BYTES)
        take(f.server_nonce, NONCE_BYTES)
    elseif direction == 0 and (opcode == TERMINATE or opcode == DESYNC) then
        take(f.status, 1)
    else
        take(f.body, range:len() - at)
    end
end

local function show_verdict(message, tree, tag_item, opcode, direction, is_seen_before)
    local known = look_up(message)
    if not known then return end
    if #known.said > 0 then
        tree:add(f.verdict, table.concat(known.said, "; ")):set_generated()
    end
    if known.refused and (is_seen_before or not known.accepted) then
        tree:add_proto_expert_info(e.refused, table.concat(known.said, "; "))
    end
    if known.plaintext then
        show_plaintext(known.plaintext, tree, opcode, direction)
    elseif log.tags[message:sub(-2 * TAG_BYTES)]
           or log.ivs[message:sub(2 * IV_AT + 1, 2 * CIPHERTEXT_AT)] then
        tag_item:add_proto_expert_info(e.changed, "Changed on its way: IV or tag are those of "
                                       .. "another message of the key log")
    else
        tag_item:add_proto_expert_info(e.unsealed)
    end
end

local function show_findings(found, tree, items, goes_to_server)
    local opcode, direction = items.opcode_value, items.direction_value
    if not OPCODES[opcode] then
        items.opcode:add_proto_expert_info(e.unknown)
    elseif not DIRECTIONS[direction] or SENDER[opcode] and SENDER[opcode] ~= direction then
        items.direction:add_proto_expert_info(e.direction, "Wrong direction for this opcode")
    elseif goes_to_server ~= (direction == 0) then
        items.direction:add_proto_expert_info(
            e.direction, "It goes to the end that sends such messages: reflected?")
    end
    if found.expected then
        items.round:add_proto_expert_info(
            e.round, "Unexpected round: " .. found.expected .. " would be next here")
    end
    if found.same_as then
        tree:add(f.same_as, found.same_as):set_generated()
        if found.is_replay then
            tree:add_proto_expert_info(
                e.replay, "Replayed: frame " .. found.same_as .. " of this connection had it")
        else
            tree:add_proto_expert_info(e.elsewhere, "Frame " .. found.same_as .. " of another "
                                       .. "connection had it: passed on, or replayed")
        end
    end
end

local function is_legal(length)
    return length >= MIN_MESSAGE and length <= MAX_MESSAGE and (length - OVERHEAD) % BLOCK == 0
end

-- One frame may have several messages: the fence keeps what the earlier ones have written.
local function show_info(pinfo, words)
    pinfo.cols.info:set(words .. " ")
    pinfo.cols.info:fence()
end

local function show_message(frame, pinfo, root)
    pinfo.cols.protocol = "SecLab"
    local length = frame(0, 2):uint()
    local tree = root:add(seclab, frame())
    local length_item = tree:add(f.length, frame(0, 2))
    if not is_legal(length) then
        length_item:add_proto_expert_info(e.malformed)
        tree:append_text(", malformed: length " .. length)
        show_info(pinfo, "malformed, length " .. length)
        return
    end
    local there = math.min(length, frame:len() - 2)
    if there < length then
        tree:add_proto_expert_info(e.cut, "Cut: " .. there .. " of its " .. length
                                   .. " bytes are here")
    end
    local function part(field, at, bytes)
        local count = math.min(bytes, there - at)
        return count > 0 and tree:add(field, frame(2 + at, count)) or nil
    end
    local items = { opcode = part(f.opcode, 0, 1), client_id = part(f.client_id, 1, 1) }
    if there < IV_AT then
        tree:append_text(", cut")
        show_info(pinfo, "cut, " .. there .. " of " .. length .. " bytes")
        return
    end
    local range = frame(2, there)
    local opcode, round, direction = range(0, 1):uint(), range(2, 4):uint(), range(6, 1):uint()
    items.round, items.direction = part(f.round, 2, 4), part(f.direction, 6, 1)
    items.opcode_value, items.direction_value = opcode, direction
    part(f.iv, IV_AT, BLOCK)
    part(f.ciphertext, CIPHERTEXT_AT, length - OVERHEAD)
    local tag_item = part(f.tag, length - TAG_BYTES, TAG_BYTES)
    local words = (OPCODES[opcode] or "opcode " .. opcode) .. " id " .. range(1, 1):uint()
                  .. " round " .. round .. " " .. (DIRECTIONS[direction] or direction)
                  .. (there < length and ", cut" or "")
    tree:append_text(", " .. words)
    show_info(pinfo, words)

    local message, place = hex_of(range), pinfo.number .. ":" .. frame:offset()
    if not pinfo.visited or not findings[place] then
        findings[place] = find_out(pinfo, message, opcode, round, there < length)
    end
    local found = findings[place]
    show_findings(found, tree, items, pinfo.dst_port == pinfo.match_uint)
    if there == length then
        show_verdict(message, tree, tag_item, opcode, direction, found.same_as)
    end
end

-- Of a malformed frame nobody waits for more: what is there is shown as it is.
local function frame_length(tvb, pinfo, offset)
    local length = tvb(offset, 2):uint()
    return is_legal(length) and 2 + length or tvb:len() - offset
end

-- dissect_tcp_pdus raises an error if a packet is cut between two frames.
local function show_cut_packet(tvb, pinfo, tree)
    local at = 0
    while at + 2 <= tvb:len() do
        local length = frame_length(tvb, pinfo, at)
        show_message(tvb(at, math.min(length, tvb:len() - at)):tvb(), pinfo, tree)
        at = at + length
    end
    if at < tvb:len() or at < tvb:reported_len() then
        tree:add(seclab, tvb()):add_proto_expert_info(e.cut, "Cut: from byte " .. at
                                                     .. " on there is no whole length here")
    end
end

function seclab.dissector(tvb, pinfo, tree)
    if tvb:len() < tvb:reported_len() then
        show_cut_packet(tvb, pinfo, tree)
        return tvb:len()
    end
    dissect_tcp_pdus(tvb, tree, 2, frame_length, function(frame, info_of_packet, root)
        show_message(frame, info_of_packet, root)
        return frame:len()
    end)
    return tvb:len()
end

DissectorTable.get("tcp.port"):add(PORT, seclab)
