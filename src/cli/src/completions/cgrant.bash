
# Names of containers, images and grants: `cgrant` itself says which can stand here.
_cgrant_names() {
    local line=${COMP_LINE:0:COMP_POINT} words name prefix=
    read -r -a words <<<"$line"
    [[ $line != *[[:space:]] ]] || words+=("")
    # Where a colon ends a word (debian:trixie), what stands before it is there already.
    [[ $COMP_WORDBREAKS != *:* || ${words[-1]} != *:* ]] || prefix=${words[-1]%:*}:
    COMPREPLY=()
    while read -r name; do
        COMPREPLY+=("${name#"$prefix"}")
    done < <("${words[0]}" names -- "${words[@]:1}" 2>/dev/null)
    ((${#COMPREPLY[@]})) || _cgrant "$@"
}

complete -F _cgrant_names -o bashdefault -o default cgrant
