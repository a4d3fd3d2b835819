# What lake-up and lake-down share.

STATE=${ITWIN_TEST_LAKE:-/var/tmp/itwin-lake}
RUCIO=$STATE/rucio
PARTS=(provider postgres site-a site-b apache wsgidav rucio daemons)

pid() {
    cat "$STATE/run/$1.pid" 2>/dev/null || echo none
}

running() { # a part that is there; dead ones stay as zombies where no init system collects them
    grep -q '^State:\s*[A-Y]' "/proc/$(pid "$1")/status" 2>/dev/null
}

take_turn() { # one lake-up or lake-down at a time
    mkdir -p "$STATE"
    exec 9<"$STATE"
    flock 9
}
