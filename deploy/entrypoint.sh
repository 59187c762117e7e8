#!/bin/sh
# Runs the given command as `appuser`. Its user and group ids are set to PUID and PGID (1000 by default), so that the files in a
# mounted model folder belong to their owner outside the container. Started as a user other than root (docker run --user, or
# Kubernetes' runAsUser), it changes nothing and runs the command as that user.
set -eu

if [ "$(id -u)" -ne 0 ]; then
    # An id without an account has neither a name nor a home directory, and libraries ask for both.
    id -un >/dev/null 2>&1 || export USER=appuser
    [ -w "${HOME:-/}" ] || export HOME=/tmp
    exec "$@"
fi

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

# The account gets the ids, not only the process: libraries look up the account name of their id.
[ "$(id -g appuser)" -eq "$PGID" ] || groupmod --non-unique --gid "$PGID" appuser
[ "$(id -u appuser)" -eq "$PUID" ] || usermod --non-unique --uid "$PUID" appuser

# Only files with other owners: changing every file of a large cache would delay each start.
mkdir -p "$MODELS_DIR"
find "$MODELS_DIR" -xdev ! '(' -user "$PUID" -group "$PGID" ')' -exec chown -h "$PUID:$PGID" '{}' + ||
    echo "The owner of $MODELS_DIR cannot be changed to user $PUID; models may fail to download." >&2

export HOME=/home/appuser USER=appuser LOGNAME=appuser
exec setpriv --reuid appuser --regid appuser --init-groups --no-new-privs -- "$@"
