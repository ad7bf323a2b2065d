
# Names of containers, images and grants: `cgrant` itself says which can stand here.
function __fish_cgrant_names
    set -l words (commandline -opc)
    command cgrant names -- $words[2..-1] (commandline -ct) 2>/dev/null
end
complete -c cgrant -n "__fish_cgrant_names | string length -q" -xa "(__fish_cgrant_names)"
