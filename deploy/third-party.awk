# Of the list that cargo-bundle-licenses makes, keeps what is built in, and adds the texts that it does not find:
#   awk -v sources=~/.cargo/registry/src -f third-party.awk BUILT-IN LIST
# BUILT-IN: lines of `cargo tree`. Fails if the terms of a library are nowhere.

# The file with the terms in the source of a library, which may spell it LICENCE; "" if there is none.
function terms(    command, file) {
    command = "ls " sources "/*/" name "-" version "/LICEN[CS]E* 2>/dev/null | head -n 1"
    command | getline file
    close(command)
    return file
}

function print_text(file,    line) {
    # Its first line may be the one that is indented most.
    print "    text: |2"
    while ((getline line < file) > 0) print (line == "" ? "" : "      " line)
    close(file)
}

NR == FNR { built_in[$1 " " substr($2, 2)]; next }
FNR == 1 { is_kept = 1 }
/^- package_name: / { name = $3; is_kept = 0; next }
/^  package_version: / {
    version = $2
    is_kept = (name " " version) in built_in
    if (is_kept) print "- package_name: " name
}
/^  license: / { expression = $0 }
/^  - license: / { license = $3 }
is_kept && /^    text: NOT FOUND$/ {
    file = terms()
    if (file != "") print_text(file)
    # The text of this licence is the same for all, and enough where it is one of several.
    else if (license == "Apache-2.0") print_text("LICENSE-APACHE")
    else if (expression ~ /Apache-2\.0( OR |\/)|( OR |\/)Apache-2\.0/) print "    text: not in the source; the terms are those of Apache-2.0"
    else { print "the terms of " name " " version " are nowhere" >"/dev/stderr"; is_missing = 1 }
    next
}
is_kept
END { exit is_missing }
