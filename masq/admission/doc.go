// Package admission is the validating admission webhook: it refuses a
// configuration that the agents would refuse, when it is written.
//
// It owns the judgement of one admission request ([Reviewer]) and the
// certificate that the API server trusts ([Files], [SelfSigned]). What is
// wrong with a text is configfile's and egressnat's to say: the agents, "lint"
// and this package read with the same code.
//
// It refuses nothing that it does not know, and no update that leaves the
// configuration as it is: whoever mends a label must not be held up by a text
// that was wrong before. Mistakes that leave a ConfigMap without an effect, such as
// another name or key, are warnings.
//
// To debug it, write the object with "kubectl apply --dry-run=server": the
// webhook has no side effects and judges that as well. With -v=4 every request
// and verdict is logged.
package admission
