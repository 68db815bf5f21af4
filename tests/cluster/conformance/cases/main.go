// Command cases runs cyclonus' generated cases against the cluster of KUBECONFIG: policies of every shape, each held against what
// cyclonus' own model says of every pair of nine pods. It is cyclonus as a library: its command would ask for each
// pair by an exec of its own.
//
// On standard output there is one object of JSON a line: how many cases there will be, then each case as it ends. Cyclonus' own
// words, and the policies of what is wrong, go to standard error.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/mattfenwick/cyclonus/pkg/connectivity"
	"github.com/mattfenwick/cyclonus/pkg/connectivity/probe"
	"github.com/mattfenwick/cyclonus/pkg/generator"
	"github.com/mattfenwick/cyclonus/pkg/kube"
	v1 "k8s.io/api/core/v1"
)

type announced struct {
	Cases int `json:"cases"`
	// Cases before the first of this part.
	Before int `json:"before"`
}

type ended struct {
	Number int      `json:"number"`
	Name   string   `json:"name"`
	Tags   []string `json:"tags"`
	// Pairs that are not as the model says, or why the case could not be run.
	Wrong []string `json:"wrong"`
	// Why it was not run.
	Skipped string `json:"skipped,omitempty"`
}

func main() {
	registry := flag.String("registry", "", "what the names of images begin with")
	tags := flag.String("tags", "", "only cases with one of these tags, separated by commas")
	without := flag.String("without", "", "no cases with one of these tags, separated by commas; they are named all the same")
	part := flag.String("part", "1/1", "only this part of the cases: the second of four is 2/4")
	flag.Parse()
	if err := run(*registry, list(*tags), list(*without), *part); err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

func list(text string) []string {
	if text == "" {
		return nil
	}
	return strings.Split(text, ",")
}

func run(registry string, tags, without []string, part string) error {
	var number, parts int
	if _, err := fmt.Sscanf(part, "%d/%d", &number, &parts); err != nil || number < 1 || number > parts {
		return fmt.Errorf("%q is no part such as 2/4", part)
	}
	if err := generator.ValidateTags(slices.Concat(tags, without)); err != nil {
		return err
	}
	cluster, err := kube.NewKubernetesForContext("")
	if err != nil {
		return err
	}
	namespaces, pods := []string{"x", "y", "z"}, []string{"a", "b", "c"}
	// SCTP is no protocol of every kernel's.
	protocols := []v1.Protocol{v1.ProtocolTCP, v1.ProtocolUDP}
	const patience = 180
	resources, err := probe.NewDefaultResources(cluster, namespaces, pods, []int{80, 81}, protocols, nil, patience, false, registry)
	if err != nil {
		return err
	}
	interpreter := connectivity.NewInterpreter(cluster, resources, &connectivity.InterpreterConfig{
		ResetClusterBeforeTestCase:       true,
		VerifyClusterStateBeforeTestCase: true,
		// A change takes effect in milliseconds; a busy machine may need them to be seconds.
		PerturbationWaitSeconds: 1,
		KubeProbeRetries:        2,
		// The model blocks a pod's way to itself, where NetworkPolicy can not: see wrong.
		IgnoreLoopback:    true,
		BatchJobs:         true,
		JobTimeoutSeconds: 1,
	})
	peer, err := resources.GetPod("z", "c")
	if err != nil {
		return err
	}
	cases := generator.NewTestCaseGenerator(true, peer.IP, namespaces, tags, nil).GenerateTestCases()
	out := json.NewEncoder(os.Stdout)
	first, after := len(cases)*(number-1)/parts, len(cases)*number/parts
	cases = cases[first:after]
	if err := out.Encode(announced{len(cases), first}); err != nil {
		return err
	}
	for i, c := range cases {
		end := ended{Number: first + i + 1, Name: c.Description, Tags: c.Tags.Keys(), Wrong: []string{}}
		slices.Sort(end.Tags)
		if at := slices.IndexFunc(without, func(tag string) bool { return c.Tags[tag] }); at >= 0 {
			end.Skipped = "left out: " + without[at]
			if err := out.Encode(end); err != nil {
				return err
			}
			continue
		}
		for _, step := range c.Steps {
			// The addresses of Services are not served.
			step.Probe.Mode = generator.ProbeModePodIP
		}
		result := interpreter.ExecuteTestCase(c)
		end.Wrong = wrong(result)
		if err := out.Encode(end); err != nil {
			return err
		}
		if result.Err != nil {
			// Whatever it was about to undo is still there.
			return fmt.Errorf("case %d: %w", end.Number, result.Err)
		}
	}
	return nil
}

// wrong names each pair that is not as the model says, but for pods and themselves: nothing may block them.
func wrong(result *connectivity.Result) []string {
	found := []string{}
	if result.Err != nil {
		found = append(found, result.Err.Error())
	}
	for number, step := range result.Steps {
		comparison, before := step.LastComparison(), len(found)
		for _, pair := range comparison.Wrapped.Keys() {
			item := comparison.Get(pair.From, pair.To)
			for key, is := range item.Kube.JobResults {
				must := probe.ConnectivityUnknown
				if model, known := item.Simulated.JobResults[key]; known {
					must = model.Combined
				}
				if pair.From == pair.To && must == probe.ConnectivityBlocked {
					must = probe.ConnectivityAllowed
				}
				if must != is.Combined {
					found = append(found, fmt.Sprintf("step %d: %s to %s %s is %s", number+1, pair.From, pair.To, key, is.Combined))
				}
			}
		}
		if len(found) > before {
			for _, policy := range step.KubePolicies {
				fmt.Fprintln(os.Stderr, connectivity.PrintNetworkPolicy(policy))
			}
		}
	}
	slices.Sort(found)
	return found
}
