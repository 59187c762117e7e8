#!/bin/sh
# Runs the given command without rights. Started as root, it runs it as the user and group PUID and PGID (1000 by default), so that
# the files in a mounted model folder belong to their owner outside the container. Started as another user (docker run --user, or
# Kubernetes' runAsUser), it runs it as that one. It writes to MODELS_DIR alone, so the container may be read-only.
set -eu

as=
if [ "$(id -u)" -eq 0 ]; then
    PUID=${PUID:-1000}
    PGID=${PGID:-1000}
    for id in "$PUID" "$PGID"; do
        case $id in
            '' | *[!0-9]*)
                echo "PUID and PGID must be numbers, not '$id'." >&2
                exit 1
                ;;
        esac
    done

    # Only files with other owners: changing every file of a large cache would delay each start.
    mkdir -p "$MODELS_DIR"
    find "$MODELS_DIR" -xdev ! '(' -user "$PUID" -group "$PGID" ')' -exec chown -h "$PUID:$PGID" '{}' + ||
        echo "The owner of $MODELS_DIR cannot be changed to user $PUID; models may fail to download." >&2

    as="setpriv --reuid=$PUID --regid=$PGID --clear-groups --no-new-privs --"
    export HOME=/home/appuser
fi

# An id without an account has neither a name nor a home directory, and libraries ask for both.
export USER=appuser LOGNAME=appuser
$as test -w "${HOME:-/}" || export HOME=/tmp
exec $as "$@"
