// Package deps pins modules that are about to be used.
package deps

import (
	_ "cloud.google.com/go/longrunning/autogen/longrunningpb"
	_ "cloud.google.com/go/orchestration/airflow/service/apiv1"
	_ "github.com/coreos/go-oidc/v3/oidc"
	_ "github.com/google/uuid"
	_ "go4.org/netipx"
	_ "google.golang.org/api/composer/v1"
	_ "google.golang.org/genproto/googleapis/api/annotations"
	_ "google.golang.org/genproto/googleapis/rpc/errdetails"
	_ "google.golang.org/grpc"
	_ "google.golang.org/grpc/health"
	_ "google.golang.org/grpc/reflection"
	_ "google.golang.org/protobuf/proto"
	_ "modernc.org/sqlite"
	_ "sigs.k8s.io/yaml"
)
