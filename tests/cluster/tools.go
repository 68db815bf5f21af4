//go:build tools

// What is built out of this module and is no tool of Go's own kind: upstream's end-to-end tests.
package tools

import _ "k8s.io/kubernetes/test/e2e"
