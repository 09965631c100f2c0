#!/bin/sh
# Redraws seclab.png: apt install wireshark xvfb xdotool imagemagick, then sh classroom/wireshark/picture.sh
# It lets an attack run against a server that logs its keys, and takes a picture of Wireshark.
set -eu
cd "$(dirname "$0")/../.."
python=${PYTHON:-python3}
here=$(mktemp -d)
"$python" server.py --port 0 --window 0.3 --keylog "$here/keys.log" > "$here/server" 2>&1 &
server=$!
trap 'kill $server 2>/dev/null || true; rm -rf "$here"' EXIT
until grep -q "^listening on" "$here/server"; do
    kill -0 $server 2>/dev/null || { cat "$here/server"; exit 1; }
    sleep 0.1
done
address=$(sed -n 's/^listening on //p' "$here/server")
"$python" attacks.py --server "${address%% *}" --events "$here/run.jsonl" replay-rewritten
"$python" -m classroom.capture "$here/run.jsonl" -o "$here/run.pcapng"
mkdir "$here/config"  # a configuration of its own: columns that fit, and no welcome
cat > "$here/config/preferences" <<'PREFERENCES'
gui.column.format: "No.", "%m", "Source", "%us", "Destination", "%ud", "Protocol", "%p", "Info", "%i"
gui.update.enabled: FALSE
gui.toolbar_main_show: FALSE
gui.layout_type: 5
gui.layout_content_1: PLIST
gui.layout_content_2: PDETAILS
gui.layout_content_3: NONE
PREFERENCES
cat > "$here/config/recent" <<'RECENT'
gui.geometry_main_x: 0
gui.geometry_main_y: 0
gui.geometry_main_width: 1100
gui.geometry_main_height: 1060
RECENT
cat > "$here/shoot" <<'SHOOT'
wireshark -X lua_script:classroom/wireshark/seclab.lua -o "seclab.keylog:$1/keys.log" \
    -r "$1/run.pcapng" -Y seclab -g 21 &
sleep "${SECONDS_TO_START:-12}"
# drag the divider below the packets, choose the replayed one, unfold what is said of it
xdotool mousemove 550 563 mousedown 1 mousemove 550 400 mousemove 550 320 mouseup 1
sleep 1
xdotool mousemove 300 224 click 1 sleep 1 mousemove 300 406 click 1 key shift+Right \
    sleep 1 mousemove 300 331 click 1 key shift+Right
sleep 2
import -window root "$1/root.png"
kill $!
SHOOT
WIRESHARK_CONFIG_DIR="$here/config" QT_QPA_PLATFORM=xcb xvfb-run -a -s "-screen 0 1100x1060x24" \
    sh "$here/shoot" "$here" > "$here/log" 2>&1 || { cat "$here/log"; exit 1; }
convert "$here/root.png" -crop 1100x830+0+0 +repage -colors 64 -strip classroom/wireshark/seclab.png
