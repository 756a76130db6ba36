#!/bin/sh
# Installs inspectd as a service, upgrades it, takes an upgrade back, removes it. docs/deploy.md tells the whole story.
#
#   /opt/inspectd/releases/VERSION-HASH/   one virtual environment per release; HASH is of the wheel, the Python
#                                          and what --with adds
#   /opt/inspectd/current, previous        which of them runs, and which one --rollback returns to
#   /etc/inspectd/NAME.toml                one line each, run by inspectd@NAME; never touched
#   /var/lib/inspectd/NAME/                journal and evidence; never touched
#
# Whatever kills this script, `current` names a whole release at any time; the next run takes back what was under way.
set -eu
umask 022

PROGRAM=${0##*/}
KINDS="inspectd inspectd-modbus inspectd-opcua" # a unit each, as KIND@NAME.service
RELEASES=/opt/inspectd/releases

usage() {
    cat <<END
usage: $PROGRAM [options]              install or upgrade from the source tree this script lies in
       $PROGRAM --wheel FILE           install or upgrade from a built wheel
       $PROGRAM --from PATH            ... from another source tree
       $PROGRAM --rollback             back to the release before
       $PROGRAM --uninstall [--purge]  remove; --purge removes configuration, journal and evidence too

  --wheels DIR     take the packages from DIR only, for machines without a network
  --python FILE    the Python to run with, 3.11 or newer (default: python3)
  --bridge KIND    also enable the PLC bridge of each line: modbus or opcua; repeatable
  --with PACKAGES  these too, as NAME or NAME==VERSION: torch,torchvision for CUDA; kept by upgrades, until --with none
  --settle SECONDS so long a release must run before it counts as good (default: 5)
  --root DIR       install into DIR, for an image: no user is made, nothing is started
  --dry-run        say what would be done, and do nothing
END
}

say() { printf '%s\n' "$*" 2>/dev/null || :; } # whether or not somebody is there to read it

fail() { # [-2] MESSAGE: one line, and the exit code: 1, or 2 where what was given is wrong
    code=1
    [ "$1" != -2 ] || { code=2 && shift; }
    say "$PROGRAM: $*" >&2
    exit "$code"
}

run() { # what changes something goes through here
    if [ -n "$DRY" ]; then say "would run: $*"; else "$@"; fi
}

# -- what was asked for -------------------------------------------------------------------------------------------

read_options() {
    MODE=install WHEEL='' FROM='' WHEELS='' PYTHON=python3 WITH='' ENABLED=inspectd SETTLE=5 ROOT='' DRY='' PURGE=''
    while [ $# -gt 0 ]; do
        case $1 in
        --wheel | --from | --wheels | --python | --bridge | --with | --settle | --root)
            [ -n "${2-}" ] || fail -2 "$1 needs a value; --help shows the options"
            ;;
        esac
        case $1 in
        --wheel) WHEEL=$2 && shift ;;
        --from) FROM=$2 && shift ;;
        --wheels) WHEELS=$2 && shift ;;
        --python) PYTHON=$2 && shift ;;
        --bridge)
            case $2 in modbus | opcua) ;; *) fail -2 "--bridge $2: choose modbus or opcua" ;; esac
            ENABLED="$ENABLED inspectd-$2" && shift
            ;;
        --with) WITH=$2 && shift ;;
        --settle) SETTLE=$2 && shift ;;
        --root) ROOT=$2 && shift ;;
        --rollback) MODE=rollback ;;
        --uninstall) MODE=uninstall ;;
        --purge) PURGE=yes ;;
        --dry-run) DRY=yes ;;
        -h | --help) usage && exit 0 ;;
        *) fail -2 "$1 is no option; --help shows them" ;;
        esac
        shift
    done
    case $SETTLE in *[!0-9]*) fail -2 "--settle $SETTLE: give whole seconds" ;; esac
    [ -z "$PURGE" ] || [ "$MODE" = uninstall ] || fail -2 "--purge goes with --uninstall only"
    [ -z "$WHEEL" ] || [ -z "$FROM" ] || fail -2 "--wheel and --from: give one of the two"
    case $WITH in
    -* | *,-* | *[!A-Za-z0-9.,_=+-]*) fail -2 "--with $WITH: give NAME or NAME==VERSION, with commas between" ;;
    esac
    [ -z "$WHEELS" ] || [ -d "$WHEELS" ] || fail -2 "--wheels $WHEELS: is no folder"
    if [ -n "$ROOT" ]; then
        [ -d "$ROOT" ] || fail -2 "--root $ROOT: is no folder; make it first"
        ROOT=$(cd "$ROOT" && pwd -P)
        case $ROOT in
        / | *[!A-Za-z0-9/._+-]*) fail -2 "--root $ROOT: give a folder of letters, digits and . _ + - only" ;;
        esac
    fi
}

look_around() { # where things go, and whether we may
    OPT=$ROOT/opt/inspectd ETC=$ROOT/etc/inspectd STATE=$ROOT/var/lib/inspectd
    UNITS=$ROOT/etc/systemd/system SYSUSERS=$ROOT/etc/sysusers.d/inspectd.conf
    TMP='' SWITCHED='' CHECKING=''
    NAMES=$(lines)
    [ -z "$ROOT$DRY" ] || return 0
    [ "$(id -u)" = 0 ] || fail -2 "needs root: sudo $PROGRAM, or --root DIR to install into a folder"
    [ -d /run/systemd/system ] || fail -2 "systemd does not run here: give --root DIR to install into an image"
}

# -- small things -------------------------------------------------------------------------------------------------

systemd() { # systemctl, where there is a system
    [ -n "$ROOT" ] || run systemctl "$@"
}

release_of() { # LINK: the release that `current` or `previous` names, or nothing
    target=$(readlink "$OPT/$1" 2>/dev/null) || return 0
    target=${target#releases/}
    [ ! -e "$OPT/releases/$target/.complete" ] || printf '%s' "$target"
}

point() { # LINK RELEASE, in one step; without RELEASE the link goes
    if [ -n "$2" ]; then
        run ln -sfn "releases/$2" "$OPT/.$1.new"
        run mv -T "$OPT/.$1.new" "$OPT/$1"
    else
        run rm -f "$OPT/$1"
    fi
}

lines() { # the names of the configurations
    for file in "$ETC"/*.toml; do
        [ -e "$file" ] || continue
        name=${file##*/}
        name=${name%.toml}
        case $name in
        *.*) continue ;; # line1.layout.toml is no line
        *[!A-Za-z0-9_-]*) fail -2 "$file: rename it; names of lines have letters, digits, _ and - only" ;;
        esac
        say "$name"
    done
}

running() { # the units of ours that run now, or are to: they are starting, between two attempts, or have failed
    [ -z "$ROOT" ] && [ -d /run/systemd/system ] || return 0
    for kind in $KINDS; do
        systemctl list-units --plain --no-legend --state=active,reloading,activating,failed "$kind@*.service"
    done | while read -r unit load state _; do
        name=${unit#*@}
        case $load-$state in
        loaded-active | loaded-reloading) say "$unit" ;;
        # A line that was taken away in the middle of its trouble holds up no upgrade.
        loaded-*) [ ! -e "$ETC/${name%.service}.toml" ] || ! systemctl is-enabled --quiet "$unit" || say "$unit" ;;
        esac
    done
}

place() { # FILE TARGET MODE: a file of ours, whole or not at all; sets PLACED when it changed
    ! cmp -s "$1" "$2" || return 0
    PLACED=yes
    run install -D -m "$3" "$1" "$2.new" && run mv -T "$2.new" "$2"
}

place_units() { # RELEASE: its units are the ones in force
    share=$OPT/releases/$1/share/inspectd PLACED=''
    for kind in $KINDS; do
        place "$share/$kind@.service" "$UNITS/$kind@.service" 644 || return 1
    done
    [ -z "$PLACED" ] || systemd daemon-reload
}

# -- a release ----------------------------------------------------------------------------------------------------

pip() { # ENVIRONMENT ARGUMENTS: no questions, and only the given packages where --wheels is given
    environment=$1 && shift
    command=$1 && shift
    [ -z "$WHEELS" ] || [ "$command" = check ] || set -- --no-index --find-links "$WHEELS" "$@"
    PIP_NO_INPUT=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore \
        "$environment/bin/python" -m pip "$command" "$@" >>"$LOG" 2>&1
}

trouble() { # what pip complained of last, in one line
    { grep '^ *ERROR' "$LOG" || cat "$LOG"; } | tail -n 1 | sed 's/^ *//' | tr -s '[:space:]' ' '
}

find_python() {
    PYTHON=$(command -v "$PYTHON") || fail -2 "--python: there is no such program; apt-get install python3 python3-venv"
    "$PYTHON" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null ||
        fail -2 "$PYTHON: Python 3.11 or newer with venv is needed: apt-get install python3-venv, or --python FILE"
    case $("$PYTHON" -c 'import sys; print(sys.base_prefix)') in
    /home/* | /root/*) fail -2 "$PYTHON lies where a service may not read (ProtectHome); give another --python" ;;
    esac
}

find_wheel() { # the wheel that was given, or one built from the source tree; sets WHEEL and VERSION
    if [ -z "$WHEEL" ]; then
        [ -n "$FROM" ] || FROM=$(cd "$(dirname "$0")/.." && pwd -P)
        [ -f "$FROM/pyproject.toml" ] && [ -f "$FROM/inspectd/__init__.py" ] ||
            fail -2 "$FROM: is no source tree of inspectd; give --wheel FILE or --from PATH"
        if [ -n "$DRY" ]; then
            VERSION=$(sed -n 's/^__version__ = "\(.*\)"$/\1/p' "$FROM/inspectd/__init__.py")
            say "would build a wheel of $VERSION from $FROM"
            return 0
        fi
        say "building a wheel from $FROM"
        LOG=$TMP/build.log
        "$PYTHON" -m venv "$TMP/build" >"$LOG" 2>&1 || fail "no build environment: $(trouble)"
        pip "$TMP/build" wheel --no-deps --wheel-dir "$TMP/dist" "$FROM" || fail "the wheel was not built: $(trouble)"
        WHEEL=$(echo "$TMP"/dist/inspectd-*.whl)
    fi
    case ${WHEEL##*/} in
    inspectd-*-py3-none-any.whl) ;;
    *) fail -2 "--wheel $WHEEL: expected a file inspectd-VERSION-py3-none-any.whl" ;;
    esac
    [ -r "$WHEEL" ] || fail -2 "--wheel $WHEEL: there is no such file, or it cannot be read"
    "$PYTHON" -m zipfile -t "$WHEEL" >/dev/null 2>&1 || fail -2 "--wheel $WHEEL: is damaged; copy it again"
    VERSION=${WHEEL##*/inspectd-}
    VERSION=${VERSION%%-*}
}

build_release() { # sets RELEASE, and builds it unless it is there
    RELEASE=$VERSION-HASH
    [ -n "$WITH" ] || WITH=$(cat "$OPT/current/share/inspectd/with" 2>/dev/null || true)
    [ "$WITH" != none ] || WITH=''
    if [ -f "$WHEEL" ]; then
        RELEASE=$VERSION-$({ cat "$WHEEL" && "$PYTHON" -VV && printf '%s' "$WITH"; } | sha256sum | cut -c 1-8)
    fi
    venv=$OPT/releases/$RELEASE
    [ ! -e "$venv/.complete" ] || return 0
    if [ -n "$DRY" ]; then
        say "would build $venv${WITH:+ with $WITH}"
        return 0
    fi
    say "building $venv${WITH:+ with $WITH}"
    rm -rf "$venv"
    mkdir -p "$OPT/releases"
    LOG=$OPT/releases/$RELEASE.log
    "$PYTHON" -m venv "$venv" >"$LOG" 2>&1 || fail "no virtual environment in $venv: $(trouble)"
    # The wheel first: the lock that it carries says what it was tested with.
    pip "$venv" install --no-compile --no-deps "$WHEEL" || fail "the wheel was not installed: $(trouble) ($LOG)"
    lock=$venv/share/inspectd/requirements.lock
    [ -f "$lock" ] || fail -2 "--wheel $WHEEL: carries no requirements.lock; build it with: pip wheel --no-deps ."
    pip "$venv" install --no-compile --require-hashes --only-binary :all: --requirement "$lock" ||
        fail "its packages were not installed: $(trouble) (network? --wheels DIR? $LOG has more)"
    [ -z "$WITH" ] || add_packages "$venv"
    compile_all "$venv"
    pip "$venv" check || fail "its packages do not fit together: $(trouble) ($LOG)"
    "$venv/bin/python" -m inspectd --version >>"$LOG" 2>&1 || fail "it does not start: $(trouble) ($LOG)"
    if [ -n "$ROOT" ]; then # its programs shall find each other where the image has them
        grep -lI "$ROOT$RELEASES" "$venv"/bin/* "$venv/pyvenv.cfg" | xargs -r sed -i "s|$ROOT$RELEASES|$RELEASES|g"
    else
        sync -f "$OPT" # before it can be `current` after a power cut
    fi
    touch "$venv/.complete"
    rm -f "$LOG"
}

add_packages() { # ENVIRONMENT: those of --with, and what they need; none of the locked ones moves for them
    "$1/bin/python" -m pip freeze --exclude inspectd >"$TMP/locked" 2>>"$LOG" || fail "pip freeze: $(trouble) ($LOG)"
    # shellcheck disable=SC2046 # one word each
    pip "$1" install --no-compile --only-binary :all: --constraint "$TMP/locked" $(printf '%s' "$WITH" | tr ',' ' ') ||
        fail "--with $WITH: not installed: $(trouble) (network? --wheels DIR? $LOG has more)"
    printf '%s' "$WITH" >"$1/share/inspectd/with"
}

compile_all() { # ENVIRONMENT: by all cores at once; pip would do it by one, and a service may not do it at all
    set -- "$1/bin/python" -m compileall -q -f -j 0 ${ROOT:+-s "$ROOT" -p /} "$1/lib"
    "$@" >>"$LOG" 2>&1 || true # packages carry files for other Pythons, which do not compile
}

# -- is a configuration good for a release? -----------------------------------------------------------------------

check_lines() { # RELEASE: each configuration, by the release that shall run it; sets GOOD, names, and REFUSED, words
    GOOD='' REFUSED=''
    for name in $NAMES; do
        PROBLEM=''
        if [ -n "$DRY" ]; then
            say "would check $ETC/$name.toml with $1"
        elif [ -n "$ROOT" ]; then
            check_in_root "$name" "$1"
        else
            check_as_service "$name" "$1"
        fi
        if [ -z "$PROBLEM" ]; then
            GOOD="$GOOD $name"
        else
            REFUSED="${REFUSED:+$REFUSED; }$ETC/$name.toml is not good for $1: $PROBLEM"
        fi
    done
}

check_in_root() { # NAME RELEASE: with the settings that the unit would take from its environment file
    said=$(
        if [ -r "$ETC/$1.env" ]; then
            while IFS='=' read -r key value || [ -n "$key" ]; do
                value=${value#\"}
                case $key in INSPECTD__*[!A-Za-z0-9_]*) ;; INSPECTD__*) export "$key=${value%\"}" ;; esac
            done <"$ETC/$1.env"
        fi
        "$OPT/releases/$2/bin/python" -m inspectd check -c "$ETC/$1.toml" 2>&1 >/dev/null
    ) || {
        PROBLEM=$(say "$said" | tail -n 1)
        PROBLEM=${PROBLEM:-it said nothing}
    }
}

check_as_service() { # NAME RELEASE: as inspectd@NAME itself: its user, drop-ins, credentials and sandbox
    unit=inspectd-check@$1.service
    CHECKING=/run/systemd/system/inspectd-check@.service
    mkdir -p "/run/systemd/system/$unit.d"
    cp "$OPT/releases/$2/share/inspectd/inspectd@.service" "$CHECKING"
    count=100
    for file in $(systemctl show --property DropInPaths --value "inspectd@$1.service"); do
        cp "$file" "/run/systemd/system/$unit.d/$count.conf"
        count=$((count + 1))
    done
    # The folder under /run is the running daemon's, and would go with this unit.
    cat >"/run/systemd/system/$unit.d/zz-check.conf" <<END
[Service]
Type=oneshot
RuntimeDirectory=
RemoveIPC=no
Restart=no
WatchdogSec=0
ExecStartPre=
ExecStart=
ExecStart=/opt/inspectd/releases/$2/bin/inspectd check -c /etc/inspectd/%i.toml
ExecStartPost=
ExecReload=
ExecStop=
ExecStopPost=
StandardOutput=null
StandardError=truncate:/run/inspectd-check.log
END
    systemctl daemon-reload
    systemctl start "$unit" >/dev/null 2>&1 || {
        PROBLEM=$(tail -n 1 /run/inspectd-check.log 2>/dev/null || true)
        PROBLEM=${PROBLEM:-$(systemctl show --property Result --value "$unit")}
    }
    forget_check
}

forget_check() {
    rm -rf /run/systemd/system/inspectd-check@* /run/inspectd-check.log
    systemctl daemon-reload
    systemctl reset-failed 'inspectd-check@*' 2>/dev/null || true
    CHECKING=''
}

# -- from one release to another ----------------------------------------------------------------------------------

switch_to() { # RELEASE: it is in force and runs, or the one before is and does
    OLD=$(release_of current) BEFORE=$(release_of previous)
    [ -n "$OLD$DRY" ] || place_units "$1" # drop-ins may be there before the unit is
    check_lines "$1" # before anything changes
    [ -z "$REFUSED" ] || fail -2 "$REFUSED; ${OLD:-nothing} stays in force"
    active=$(running)
    if [ -n "$OLD" ]; then
        if [ -n "$DRY" ]; then
            say "would switch from $OLD to $1"
        else
            printf '%s\n' "$OLD $BEFORE" "$active" >"$OPT/.pending.new"
            sync "$OPT/.pending.new"
            SWITCHED=yes
            mv -T "$OPT/.pending.new" "$OPT/pending"
        fi
        point previous "$OLD"
    fi
    point current "$1"
    [ -n "$DRY" ] || place_units "$1"
    bring_up "$active" || {
        [ -n "$OLD" ] || fail "$BROKEN did not come up: journalctl -u $BROKEN says why; then $PROGRAM again"
        take_back "$active"
        fail "$1 was taken back, for $BROKEN did not come up (journalctl -u $BROKEN); $OLD is in force again"
    }
    SWITCHED=''
    run rm -f "$OPT/pending"
    [ -n "$DRY" ] || say "$1 is in force${OLD:+, before it $OLD}"
}

bring_up() { # UNITS: restarted one by one, each READY within its TimeoutStartSec and there to stay; else sets BROKEN
    for BROKEN in $1; do
        say "restarting $BROKEN"
        systemd restart "$BROKEN" 2>/dev/null || return 1
        [ -n "$ROOT$DRY" ] || systemctl reset-failed "$BROKEN" # NRestarts, of the attempts before
    done
    [ -n "$1" ] && [ -z "$ROOT$DRY" ] || return 0
    sleep "$SETTLE"
    for BROKEN in $1; do
        systemctl is-active --quiet "$BROKEN" || return 1
        [ "$(systemctl show --property NRestarts --value "$BROKEN")" = 0 ] || return 1
    done
}

take_back() { # UNITS: the release before is in force again, and they run; sets WRONG where not all of it is so
    WRONG=''
    point current "$OLD"
    point previous "$BEFORE"
    place_units "$OLD" || {
        WRONG=1
        say "the units of $OLD were not put back (disk full?); later: $PROGRAM again"
    }
    for unit in $1; do
        systemd restart "$unit" 2>/dev/null || {
            WRONG=1
            say "$unit did not come up again either: journalctl -u $unit"
        }
    done
    run rm -f "$OPT/pending"
    SWITCHED='' # not before: who is interrupted in here begins it anew, on the way out
}

finish_interrupted() { # what a killed run left half done is taken back
    [ -e "$OPT/pending" ] || return 0
    { read -r OLD BEFORE || true; active=$(cat); } <"$OPT/pending"
    [ -e "$OPT/releases/${OLD:-none}/.complete" ] || fail "$OPT/pending names no release; remove it and install again"
    say "an upgrade was interrupted: back to $OLD"
    SWITCHED=yes
    active=$(printf '%s\n' "$active" "$(running)" | sort -u)
    take_back "$active"
    [ "$MODE" != rollback ] || exit "${WRONG:-0}"
}

enable_lines() { # every good line that is not enabled yet is, and starts; so does one that tries in vain; sets FAILED
    FAILED=''
    [ -z "$ROOT" ] && [ -d /run/systemd/system ] || return 0
    for name in $GOOD; do
        for kind in $ENABLED; do
            unit=$kind@$name.service
            case $(systemctl is-enabled "$unit" 2>/dev/null || true)-$(systemctl is-active "$unit" || true) in
            disabled-*)
                run systemctl enable --quiet "$unit"
                verb=start
                ;;
            enabled-activating | enabled-failed) verb=restart ;;
            *) continue ;; # a masked one stays off, one that was stopped too
            esac
            say "starting $unit"
            run systemctl "$verb" "$unit" 2>/dev/null || FAILED="$FAILED $unit"
        done
    done
    # shellcheck disable=SC2086 # one word each
    [ -z "$FAILED" ] || FAILED="${FAILED# } did not come up: journalctl$(printf ' -u %s' $FAILED) says why"
}

prune() { # all releases but the two, and what was left unfinished
    [ -z "$DRY" ] || return 0 # what is in force was not changed
    for folder in "$OPT"/releases/*; do
        name=${folder##*/}
        case $name in "$(release_of current)" | "$(release_of previous)") continue ;; esac
        rm -f "$folder/.complete" # half removed, it must not be taken for whole
        rm -rf "$folder"
    done
}

# -- the three things this script does ----------------------------------------------------------------------------

install_release() {
    find_python
    find_wheel
    build_release
    share=$OPT/releases/$RELEASE/share/inspectd
    if [ -n "$DRY" ] && [ ! -d "$share" ]; then
        say "would place units, make the user inspectd, $ETC and $STATE"
    else
        make_places "$share"
    fi
    if [ "$RELEASE" = "$(release_of current)" ]; then
        say "$RELEASE is in force already"
        place_units "$RELEASE"
        check_lines "$RELEASE"
    else
        switch_to "$RELEASE"
    fi
    enable_lines
    prune
    [ -n "$NAMES" ] ||
        say "next: write $ETC/line1.toml ($ETC/line1.toml.example explains it), then run $PROGRAM again"
    [ -z "$REFUSED" ] || fail -2 "$REFUSED${FAILED:+; $FAILED}"
    [ -z "$FAILED" ] || fail "$FAILED"
}

make_places() { # SHARE: the user and the folders
    place "$1/inspectd.sysusers" "$SYSUSERS" 644
    if [ -n "$ROOT" ]; then # the image's first boot makes the user, the unit its folder
        run install -d "$ETC" "$STATE"
    else
        run systemd-sysusers "$SYSUSERS" 2>/dev/null || fail "the user inspectd was not made: systemd-sysusers $SYSUSERS"
        run install -d -m 750 -g inspectd "$ETC"
        run install -d -m 750 -o inspectd -g inspectd "$STATE"
    fi
    place "$1/config.example.toml" "$ETC/line1.toml.example" 644
    place "$1/install.sh" "$OPT/install.sh" 755 # for --rollback and --uninstall where no source is
}

roll_back() {
    target=$(release_of previous)
    [ -n "$target" ] || fail -2 "there is no release to go back to: $OPT/previous is missing"
    switch_to "$target"
}

uninstall() {
    if [ -z "$ROOT" ] && [ -d /run/systemd/system ]; then
        for kind in $KINDS; do
            { # what is loaded, and what is only enabled
                systemctl list-units --all --plain --no-legend "$kind@?*.service"
                systemctl list-unit-files --no-legend "$kind@?*.service"
            } | cut -d ' ' -f 1 | sort -u | while read -r unit; do
                run systemctl disable --quiet --now "$unit" 2>/dev/null || true
            done
            run systemctl reset-failed "$kind@*.service" 2>/dev/null || true
        done
    fi
    for kind in $KINDS; do
        run rm -f "$UNITS/$kind@.service"
    done
    systemd daemon-reload
    run rm -rf "$OPT/releases" "$OPT/current" "$OPT/previous" "$OPT/pending" "$OPT/install.sh"
    run rm -rf "$OPT"
    if [ -z "$PURGE" ]; then
        say "removed; $ETC, $STATE and the user inspectd stay (--purge removes them)"
        return 0
    fi
    run rm -rf "$ETC" "$STATE" "$SYSUSERS"
    [ -n "$ROOT" ] || ! id inspectd >/dev/null 2>&1 || run userdel inspectd
    say "removed, with configuration, journal and evidence"
}

clean_up() { # on the way out, however that came
    status=$?
    trap '' HUP INT TERM
    [ -z "$CHECKING" ] || forget_check
    [ -z "$SWITCHED" ] || {
        say "interrupted: back to $OLD" >&2
        take_back "$active"
    }
    [ -z "$TMP" ] || rm -rf "$TMP"
    exit "$status"
}

main() {
    read_options "$@"
    look_around
    trap clean_up EXIT
    trap 'exit 129' HUP
    trap 'exit 130' INT
    trap 'exit 143' TERM
    trap '' PIPE # a reader who goes away ends nothing
    if [ -z "$DRY" ]; then
        mkdir -p "$OPT"
        exec 9>>"$OPT/.lock"
        flock -n 9 || fail "another $PROGRAM is at work on $OPT; wait for it"
        TMP=$(mktemp -d)
        [ "$MODE" = uninstall ] || finish_interrupted
    fi
    case $MODE in
    install) install_release ;;
    rollback) roll_back ;;
    uninstall) uninstall ;;
    esac
}

main "$@"
