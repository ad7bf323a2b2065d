
# Names of containers, images and grants: `cgrant` itself says which can stand here.
(( $+functions[_cgrant_names] )) ||
_cgrant_names() {
    local -a names
    names=(${(f)"$(_call_program names ${(q)cgrant_words[1]} names -- ${(q)cgrant_words[2,-1]} 2>/dev/null)"})
    if (( $#names )); then compadd -a names; else _default; fi
}

