// Pins the definition of ClusterNetworkPolicy, which the scenarios beside it are applied with.
module weft/tests/cluster/policies

go 1.25.0

require sigs.k8s.io/network-policy-api v0.2.0
